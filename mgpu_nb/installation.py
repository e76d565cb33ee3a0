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
    """Whether a file is of an installation: of this interpreter, or below a folder of packages of another.

    One that is only linked there is not: tools install so what is being developed.
    """
    if os.path.islink(file):
        file = os.path.realpath(file)
    return _holds_packages(os.path.dirname(file))


@functools.lru_cache(
    10_000
)  # a process has thousands of modules, and to resolve the links of a name takes 0.1 ms
def _holds_packages(folder: str) -> bool:
    folder = f"{os.path.realpath(folder)}/"
    return any(folder.startswith(f"{each}/") for each in installed_folders()) or any(
        f"/{name}/" in folder for name in PACKAGES
    )
