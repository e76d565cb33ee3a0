"""Whose a file is: an installation's, or the user's."""

import os
from pathlib import Path

import numpy as np
import pytest

from mgpu_nb.installation import installed_folders, is_installed


def test_files_of_libraries_are_installed() -> None:
    for file in (os.__file__, np.__file__, pytest.__file__):
        assert is_installed(file), file


def test_files_of_the_user_are_not(tmp_path: Path) -> None:
    assert not is_installed(str(tmp_path / "model.py"))
    assert not is_installed(__file__)
    library = str(Path(os.__file__).resolve().parent)
    assert library in installed_folders()
    assert not is_installed(f"{library}-mine/model.py")  # a name alike


def test_packages_of_another_environment_and_behind_a_link_are_installed(tmp_path: Path) -> None:
    assert is_installed(str(tmp_path / "lib" / "python3.12" / "site-packages" / "numpy" / "__init__.py"))
    (tmp_path / "link").symlink_to(Path(np.__file__).parent)
    assert is_installed(str(tmp_path / "link" / "linalg.py"))
