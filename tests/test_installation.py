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
    assert is_installed(str(tmp_path / "link" / "version.py"))
    (tmp_path / "version.py").symlink_to(np.__file__)
    assert is_installed(str(tmp_path / "version.py"))


def test_what_is_only_linked_into_an_installation_is_the_users(tmp_path: Path) -> None:
    packages = tmp_path / "lib" / "site-packages"
    packages.mkdir(parents=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "model.py").touch()
    (packages / "mine").symlink_to(tmp_path / "mine")
    (packages / "model.py").symlink_to(tmp_path / "mine" / "model.py")
    assert not is_installed(str(packages / "mine" / "model.py"))
    assert not is_installed(str(packages / "model.py"))
