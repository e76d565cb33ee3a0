"""Which files belong to a Python installation, and which are a user's own."""

from __future__ import annotations

import functools
import os
import site
import sysconfig

__all__ = ["PACKAGES", "installed_folders", "is_installed"]

PACKAGES = ("site-packages", "dist-packages")
"""What folders of packages are called."""


@functools.cache
def installed_folders() -> frozenset[str]:
    """Folders of this interpreter's standard library and packages, without links."""
    paths = sysconfig.get_paths()
    folders = [paths[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")]
    folders += [f"{paths['stdlib']}/lib-dynload", *site.getsitepackages(), site.getusersitepackages()]
    return frozenset(map(os.path.realpath, folders))


def is_installed(file: str) -> bool:
    """Whether a file is of an installation: of this interpreter, or below a folder of packages of another."""
    file = os.path.realpath(file)
    return file.startswith(_beginnings()) or any(f"/{name}/" in file for name in PACKAGES)


@functools.cache
def _beginnings() -> tuple[str, ...]:
    return tuple(f"{folder}/" for folder in installed_folders())
