"""What another interpreter is and has, as JSON after a mark. It runs there, by ``python -c``, without anything of ours.

It must run in interpreters that are too old for all else: nothing here is newer than Python 3.7. Arguments: a mark, the
names of distributions, the names of modules to import, the user's own folders, and a text to run before that import.
"""

from __future__ import annotations

import json
import os
import sys


def version(distribution: str) -> str:
    """Version of an installed package; empty if there is none."""
    try:
        from importlib import metadata  # since Python 3.8

        return str(metadata.version(distribution))
    except Exception:
        return ""


def import_error(module: str) -> str:
    """Why a module does not import; empty if it does."""
    import importlib

    try:
        importlib.import_module(module)
    except BaseException as error:  # whatever it raises
        return f"{type(error).__name__}: {error}"
    return ""


def place(module: str) -> str:
    """File of a module, which is not imported; empty if there is none."""
    import importlib.util

    try:
        return getattr(importlib.util.find_spec(module), "origin", None) or ""
    except Exception:
        return ""


def main(mark: str, distributions: list[str], modules: list[str], folders: list[str], boot: str) -> None:
    """Write the answer, and end."""
    path = [os.path.abspath(entry) for entry in sys.path]
    sys.path[:] = path
    ours = place("mgpu_nb")
    sys.path[:] = [*path, *folders]
    if modules:
        exec(boot)  # noqa: S102 - of the process that asks
    failed = {name: error for name, error in zip(modules, map(import_error, modules)) if error}  # noqa: B905
    found = {
        "version": list(sys.version_info[:3]),
        "implementation": sys.implementation.name,
        "path": path,
        "packages": {name: version(name) for name in distributions},
        "place": ours,
        "errors": failed,
    }
    sys.stdout.write(f"\n{mark}{json.dumps(found)}\n")
    sys.stdout.flush()
    os._exit(0)  # some packages take seconds to end, or never do


if __name__ == "__main__":
    sys.path[:] = [entry for entry in sys.path if entry]  # not the working directory
    main(sys.argv[1], *map(json.loads, sys.argv[2:6]))
