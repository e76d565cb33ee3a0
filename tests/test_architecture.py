"""The plan of the package: which room may import which, by every import that its source names.

All imports count: those within functions, under ``TYPE_CHECKING``, by `importlib` and in the tables of lazy_loader.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

import mgpu_nb

PACKAGE = "mgpu_nb"
ROOT = Path(mgpu_nb.__file__).parent

BASE = (
    "tasks", "value_of", "errors", "context", "summary", "signature", "options", "tables", "output", "notebook",
    "version", "interrupts", "places", "installation",
)  # fmt: skip
# What is said to an engine and its workers: its Protocol, the pickles of calls, the state they are made in.
ENGINE = ("engines.base", "engines.payload", "engines.shared", "engines.protocol")
# From each room to the rooms, or the single modules of a room, that it may import. The highest is first, and each
# imports only from those below it. A folder of workloads/ is a room of its own; "workloads" stands for each of them.
ROOMS: dict[str, tuple[str, ...]] = {
    "__main__": ("cli",),
    "cli": (
        "chaos",
        "studies",
        "cluster",
        "workloads.base",
        "distributed",
        "pool",
        "runs",
        "views",
        "hardware",
        *BASE,
    ),
    "workloads": (
        "studies",
        "workloads.base",
        "distributed",
        "pool",
        "runs",
        "views",
        "store",
        "hardware",
        "listeners",
        *BASE,
    ),
    "studies": ("workloads.base", "pool", "runs", "views", "store.files", "hardware", *BASE),
    "chaos": ("pool", "runs", "engines.servers", "hardware", *BASE),
    "workloads.base": (
        "cluster",
        "distributed",
        "pool",
        "runs",
        "engines.base",
        "views",
        "store",
        "hardware",
        *BASE,
    ),
    "cluster": (
        "distributed",
        "pool",
        "runs",
        "scheduler.loop",
        "engines",
        "views.lists",
        "telemetry",
        "store.files",
        "hardware",
        *BASE,
    ),
    "distributed": ("pool", "runs", "engines.base", "store.files", "hardware", *BASE),
    "pool": ("runs", "scheduler", "engines", "views", "telemetry", "hardware", *BASE),
    "runs": ("scheduler", *ENGINE, "views", "telemetry", "store", "hardware", "listeners", *BASE),
    "scheduler": ("engines.base", "telemetry", "hardware", *BASE),
    "engines": ("store", "hardware", *BASE),
    "views": ("telemetry", "hardware", *BASE),
    "telemetry": ("store.files", "hardware", *BASE),
    "store": ("hardware.host_copy", *BASE),
    "hardware": BASE,
    "listeners": ("tasks",),
    "context": ("errors", "options"),
    "tasks": ("errors", "summary", "signature", "options", "tables", "places", "installation"),
    "value_of": (),
    "errors": (),
    "summary": ("signature",),
    "signature": ("options",),
    "options": (),
    "tables": ("output",),
    "places": ("output",),
    "installation": (),
    "output": (),
    "interrupts": (),
    "notebook": (),
    "version": (),
}
# Former names of modules, above all rooms: nothing of ours imports them.
SHIMS = {"renamed", "slurm"}
# Where pictures and widgets are made; elsewhere their libraries are named for types alone.
DRAWING = {"matplotlib", "ipywidgets", "IPython"}
DRAWERS = ("views.*", "workloads.*.views", "studies.picture")

# Offences against the table, and for each circle an import that closes it: to be mended, so it may only become shorter.
KNOWN: set[str] = set()


class Import(NamedTuple):
    """A module names another."""

    source: str
    target: str
    line: int
    typing: bool = False
    lazy: bool = False

    def __str__(self) -> str:
        return f"{self.source} -> {self.target or PACKAGE}"

    @property
    def where(self) -> str:
        """File and line, then the two modules."""
        return f"{MODULES[self.source].relative_to(ROOT.parent)}:{self.line}: {self}"


def _modules() -> dict[str, Path]:
    """Files of all modules by name; the package itself is ``""``, a module within it has its name from there."""
    found = {}
    for file in sorted(ROOT.rglob("*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


MODULES = _modules()


class _Reader(ast.NodeVisitor):
    """Collects the imports of one module."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.package = source if MODULES[source].name == "__init__.py" else source.rpartition(".")[0]
        self.found: list[Import] = []
        self.typing = False

    def visit_If(self, node: ast.If) -> None:
        outer = self.typing
        self.typing |= "TYPE_CHECKING" in ast.unparse(node.test)
        for child in node.body:
            self.visit(child)
        self.typing = outer
        for child in node.orelse:
            self.visit(child)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._add(alias.name, node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        path = ".".join(filter(None, (self._above(node.level), node.module)))
        for alias in node.names:
            self._add(path, node, alias.name)

    def visit_Call(self, node: ast.Call) -> None:
        called = ast.unparse(node.func)
        if called.endswith(("import_module", "__import__")) and isinstance(node.args[0], ast.Constant):
            name = str(node.args[0].value)
            level = len(name) - len(name.lstrip("."))
            self._add(".".join(filter(None, (self._above(level), name[level:]))), node)
        if called == "lazy_loader.attach":
            for keyword in node.keywords:
                if keyword.arg == "submod_attrs":
                    for name in ast.literal_eval(keyword.value):
                        self._add(f"{self._above(1)}.{name}", node, lazy=True)
        self.generic_visit(node)

    def _above(self, level: int) -> str:
        """Full name of the package that so many leading dots mean."""
        if not level:
            return ""
        parts = [PACKAGE, *filter(None, self.package.split("."))]
        return ".".join(parts[: len(parts) - level + 1])

    def _add(self, path: str, node: ast.stmt | ast.expr, name: str = "", *, lazy: bool = False) -> None:
        top, _, within = path.partition(".")
        target = path
        if top == PACKAGE:
            longer = f"{within}.{name}".strip(".")
            target = longer if longer in MODULES else within
            assert target in MODULES, f"{self.source}:{node.lineno}: no module {path}"
        else:
            target = f"!{top}"
        self.found.append(Import(self.source, target, node.lineno, self.typing, lazy))


def imports_of(source: str, text: str) -> list[Import]:
    """Imports that a module's text names; a library's target begins with ``!``."""
    reader = _Reader(source)
    reader.visit(ast.parse(text))
    return reader.found


@cache
def imports() -> tuple[Import, ...]:
    """All imports of the package."""
    texts = {name: file.read_text(encoding="utf-8") for name, file in MODULES.items()}
    return tuple(dict.fromkeys(found for name, text in texts.items() for found in imports_of(name, text)))


def inner() -> Iterator[Import]:
    """Imports of the package's own modules; the table of the public names may name all, and is left out."""
    return (i for i in imports() if i.source and not i.target.startswith("!"))


def room(module: str) -> str:
    """Room of a module: of a workload its folder, of what workloads share ``workloads.base``."""
    parts = module.split(".")
    if parts[0] != "workloads":
        return parts[0]
    folder = ".".join(parts[:2])
    return folder if MODULES[folder].name == "__init__.py" and folder != "workloads" else "workloads.base"


def allowed(edge: Import) -> bool:
    """Whether the table allows an import."""
    source, target = room(edge.source), room(edge.target)
    if source in SHIMS or source == target:
        return True
    may = ROOMS["workloads" if source.startswith("workloads.") and source != "workloads.base" else source]
    return any(f"{edge.target}.".startswith(f"{name}.") or target == name for name in may)


def circles(edges: Iterator[Import]) -> list[list[Import]]:
    """The imports within each strongly connected component of more than one module (Tarjan, 1972)."""
    after: dict[str, list[str]] = {}
    kept = [e for e in edges if e.source != e.target]
    for edge in kept:
        after.setdefault(edge.source, []).append(edge.target)
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[set[str]] = []

    def visit(node: str) -> None:
        order[node] = low[node] = len(order)
        stack.append(node)
        for other in after.get(node, ()):
            if other not in order:
                visit(other)
            if other in stack:
                low[node] = min(low[node], low[other])
        if low[node] == order[node]:
            at = stack.index(node)
            found.append(set(stack[at:]))
            del stack[at:]

    for node in after:
        if node not in order:
            visit(node)
    return [[e for e in kept if {e.source, e.target} <= part] for part in found if len(part) > 1]


def test_no_import_goes_up_or_to_a_room_that_the_table_does_not_name() -> None:
    wrong = "\n".join(i.where for i in inner() if not allowed(i) and str(i) not in KNOWN)
    assert not wrong, f"imports that the table of rooms does not allow:\n{wrong}"


def test_no_module_imports_itself_by_a_detour() -> None:
    wrong = circles(i for i in inner() if str(i) not in KNOWN)
    shown = "\n\n".join("\n".join(i.where for i in part) for part in wrong)
    assert not shown, f"circles of imports:\n{shown}"


def test_lazy_tables_stay_within_their_package() -> None:
    wrong = [i.where for i in inner() if i.lazy and not i.target.startswith(f"{i.source}.")]
    assert not wrong, "\n".join(wrong)


def test_pictures_are_drawn_where_views_are() -> None:
    at = [i for i in imports() if i.target.lstrip("!") in DRAWING and not i.typing]
    wrong = [i.where for i in at if not any(Path(i.source).match(name) for name in DRAWERS)]
    assert not wrong, "libraries of pictures and widgets outside of views:\n" + "\n".join(wrong)
    assert len(at) > len(wrong)


def test_what_is_known_to_be_wrong_is_still_there() -> None:
    part_of_circles = {str(i) for part in circles(inner()) for i in part}
    wrong = {str(i) for i in inner() if not allowed(i)} | part_of_circles
    assert not KNOWN - wrong, f"mended, take it from KNOWN: {sorted(KNOWN - wrong)}"


def test_every_module_has_a_room_and_every_room_modules() -> None:
    rooms = {room(module) for module in MODULES if module} - SHIMS
    named = {
        "workloads" if name.startswith("workloads.") and name != "workloads.base" else name for name in rooms
    }
    assert named == ROOMS.keys()


def test_the_table_itself_goes_down() -> None:
    order = list(ROOMS)
    for name, may in ROOMS.items():
        for other in may:
            below = other if other in ROOMS else other.partition(".")[0]
            assert order.index(name) < order.index(below), f"{name} -> {other}"
            assert other in ROOMS or other in MODULES, other
    for name in (
        "workloads",
        "views",
        "studies",
    ):  # they know the public names and no way in which a task runs
        assert not [other for other in ROOMS[name] if other.startswith(("scheduler", "engines"))]


@pytest.mark.parametrize(
    ("source", "text", "targets"),
    [
        ("runs.run", "from ..views import table", ["views.table"]),
        ("runs.run", "def f():\n    from .batch import Batch, RecordedJob", ["runs.batch", "runs.batch"]),
        ("runs.run", "if TYPE_CHECKING:\n    from .. import pool", ["pool"]),
        ("runs.run", "import mgpu_nb.runs.plan as p, os.path", ["runs.plan", "!os"]),
        ("runs.run", "from mgpu_nb import Task", [""]),
        ("runs.run", "importlib.import_module('mgpu_nb.pool')", ["pool"]),
        ("workloads", "lazy_loader.attach(__name__, submod_attrs={'threads': ['f']})", ["workloads.threads"]),
        ("workloads.protein", "from .config import Config", ["workloads.protein.config"]),
        ("workloads.protein.config", "from ...store.files import file_stem", ["store.files"]),
    ],
)  # fmt: skip
def test_all_kinds_of_imports_are_read(source: str, text: str, targets: list[str]) -> None:
    assert [i.target for i in imports_of(source, text)] == targets


@pytest.mark.parametrize(
    ("source", "target", "fine"),
    [
        ("store.files", "pool", False),
        ("telemetry.recorder", "store.files", True),
        ("telemetry.recorder", "store.journal", False),
        ("workloads.protein.plan", "workloads.tracin.plan", False),
        ("workloads.protein.plan", "workloads.threads", True),
        ("workloads.threads", "workloads.protein.plan", False),
        ("workloads.protein.plan", "engines.payload", False),
        ("runs.plan", "engines.payload", True),
        ("runs.plan", "engines.local", False),
        ("runs.plan", "", False),
    ],
)
def test_the_table_tells_right_from_wrong(source: str, target: str, fine: bool) -> None:
    assert allowed(Import(source, target, 1)) is fine


def test_circles_are_found() -> None:
    chain = [Import(a, b, 1) for a, b in pairwise("abca")]
    (found,) = circles(iter([*chain, Import("a", "d", 1), Import("d", "d", 1)]))
    assert found == chain
    assert not circles(iter(chain[:2]))


# One interpreter, and a fork of it for each module: none of ours has been imported before it.
_ALONE = """
import gc, importlib, os, sys, traceback
for heavy in ("torch", "pandas", "matplotlib.pyplot", "psutil", "multiprocessing"):
    importlib.import_module(heavy)
gc.freeze()  # else the collector of each fork looks at all of these, and so copies their pages
bad = []
for name in sys.argv[1:]:
    if not (child := os.fork()):
        try:
            importlib.import_module(name)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        bad.append(name)
sys.exit("cannot be imported alone: " + ", ".join(bad) if bad else 0)
"""


@pytest.mark.slow
def test_every_module_can_be_imported_alone() -> None:
    names = [".".join(filter(None, (PACKAGE, name))) for name in MODULES if not name.endswith("__main__")]
    done = subprocess.run(
        [sys.executable, "-c", _ALONE, *names], capture_output=True, text=True, timeout=1200, cwd=ROOT.parent
    )
    assert done.returncode == 0, done.stderr
