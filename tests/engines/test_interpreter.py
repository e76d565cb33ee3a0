"""Another interpreter is asked what it is: what is refused at the door, and with which words."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from environments import CORE, environment, fake_python, interpreter_of

from mgpu_nb import GPUPool
from mgpu_nb.engines import interpreter as interpreter_module
from mgpu_nb.engines.environment import Environment
from mgpu_nb.engines.interpreter import Interpreter, find_interpreter
from mgpu_nb.engines.protocol import PROTOCOL


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with what a worker needs and no more."""
    return environment(tmp_path_factory.mktemp("env") / "env")


def refused(python: Path | str, **options: Any) -> str:
    """Why no pool can be made with it."""
    with pytest.raises(ValueError, match="python=") as caught:
        find_interpreter(python, **options)
    return str(caught.value)


def test_is_found_with_what_it_has(python: Path) -> None:
    found = find_interpreter(python)
    assert found.path == str(python)  # the link, by which the environment is known
    assert found.version == ".".join(map(str, sys.version_info[:3]))
    assert found.runs_our_code
    assert found.packages["cloudpickle"]
    assert found.packages["torch"] == ""
    assert str(next(python.parents[1].glob("lib/python*/site-packages"))) in found.search


def test_is_found_by_its_name(python: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (python.parent / "python-of-others").symlink_to(python)
    monkeypatch.setenv("PATH", str(python.parent), prepend=os.pathsep)
    assert find_interpreter("python-of-others").packages["torch"] == ""


def test_one_that_is_not_there(tmp_path: Path) -> None:
    text = refused(tmp_path / "bin" / "python")
    assert "does not exist: give the path of the interpreter" in text
    with pytest.raises(ValueError, match="does not exist"):
        GPUPool(slots=1, python=tmp_path / "bin" / "python")


def test_a_folder_names_the_interpreter_in_it(python: Path, tmp_path: Path) -> None:
    assert f"is a folder: give python={str(python)!r}" in refused(python.parents[1])
    assert "is a folder: give the path of its interpreter" in refused(tmp_path)


def test_one_that_is_not_executable(tmp_path: Path) -> None:
    assert "is not executable" in refused(fake_python(tmp_path, "#!/bin/sh\n", mode=0o644))


def test_what_is_no_python(tmp_path: Path) -> None:
    text = refused(fake_python(tmp_path / "a", "#!/bin/sh\necho I am a shell; exit 3\n"))
    assert "is not a Python interpreter" in text
    assert "exit code 3" in text
    assert "I am a shell" in text
    assert "does not start" in refused(fake_python(tmp_path / "b", "\x7fELF nonsense"))
    assert "is not a Python interpreter" in refused("/bin/echo")  # which repeats what it was given


def test_one_that_hangs_is_killed_with_what_it_started(tmp_path: Path) -> None:
    hanging = fake_python(tmp_path, "#!/bin/sh\necho loading\nsleep 600 &\nwait\n")
    text = refused(hanging, timeout=2.0)
    assert "did not start within 2 s" in text
    assert "It said: loading" in text
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(hanging) in (p.info["cmdline"] or ())]


@pytest.mark.parametrize("minor", ["3.8", "3.9"])
def test_one_that_is_too_old(minor: str) -> None:
    text = refused(interpreter_of(minor))
    assert f"is Python {minor}." in text
    assert "workers need 3.10 or later" in text


def test_one_that_is_far_too_old() -> None:
    assert "far too old" in refused(interpreter_of("2.7"))


def test_one_without_what_a_worker_needs(tmp_path: Path) -> None:
    bare = environment(tmp_path / "bare", ())
    text = refused(bare)
    assert "lacks cloudpickle and lazy-loader" in text
    assert f"{bare} -m pip install 'cloudpickle>=3.0' 'lazy-loader>=0.4'" in text


def test_one_with_an_old_cloudpickle(tmp_path: Path) -> None:
    old = environment(tmp_path / "old", ("lazy_loader",))
    about = next((tmp_path / "old").glob("lib/python*/site-packages")) / "cloudpickle-2.2.1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: cloudpickle\nVersion: 2.2.1\n")
    text = refused(old)
    assert "has cloudpickle 2.2.1, and workers need cloudpickle 3.0 or later" in text


@pytest.mark.parametrize(
    ("protocol", "said"), [(f"PROTOCOL = {PROTOCOL + 1}\n", f"protocol {PROTOCOL + 1}"), ("", "of its own")]
)
def test_one_with_another_version_of_this_package(tmp_path: Path, protocol: str, said: str) -> None:
    other = environment(tmp_path / "other")
    package = next((tmp_path / "other").glob("lib/python*/site-packages")) / "mgpu_nb"
    (package / "engines").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "engines" / "protocol.py").write_text(protocol)
    text = refused(other)
    assert said in text
    assert f"this process has mgpu_nb 0.1.0 with protocol {PROTOCOL}" in text
    assert f"{other} -m pip uninstall mgpu-nb" in text


def test_says_what_does_not_import(python: Path) -> None:
    found = find_interpreter(python, ["torch", "json", "mgpu_nb.engines.worker"])
    assert found.errors == {"torch": "ModuleNotFoundError: No module named 'torch'"}


def test_never_finds_the_packages_of_this_process(python: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = find_interpreter(python)
    own, site = str(Path(__file__).parent), str(Path(pytest.__file__).parents[1])
    environment = Environment(
        {"PYTHONPATH": site, "PYTHONHOME": "/x", "VIRTUAL_ENV": "/y", "PATH": "/bin", "KEPT": "1"},
        "/",
        (site, str(Path(os.__file__).parent), own),
    )
    there = found.environment(environment)
    assert there.path == (*found.search, own)
    assert there.variables == {"PATH": f"{python.parent}:/bin", "KEPT": "1"}
    assert there.folder == "/"
    monkeypatch.setenv("PYTHONPATH", site)
    assert "pytest" in find_interpreter(python, ["pytest"]).errors
    asked = find_interpreter(python, ["pytest"], env={"PYTHONPATH": site})  # but who asks for it gets it
    assert not asked.errors


def test_a_function_of_a_cell_is_refused_for_another_minor_version(python: Path) -> None:
    from mgpu_nb.engines import payload

    version = f"3.{sys.version_info.minor + 1}.0"
    other = Interpreter("/other/python", version, (), {}, {})
    assert not other.runs_our_code

    def cell(x: int) -> int:
        return x

    parts: tuple[tuple[Any, Any, Any], ...] = ((cell, (), {}), (len, ([cell],), {}), (lambda: 1, (), {}))
    for part in parts:
        payload.dumps_call(*part)  # it goes elsewhere, and is known
        with other.sending(), pytest.raises(TypeError) as caught:
            payload.dumps_call(*part)
        text = str(caught.value)
        assert "is not importable by name" in text
        assert f"this is Python {sys.version.split()[0]}, /other/python is Python {version}" in text
        assert "Put it into a module" in text
    with other.sending():
        assert payload.dumps_call(os.path.join, ("a", "b"), {}).definitions is None
    with find_interpreter(python).sending():
        payload.dumps_call(cell, (1,), {})


def test_an_interrupt_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hanging = fake_python(tmp_path, "#!/bin/sh\nsleep 600\n")

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mgpu_nb.engines.interpreter.time.sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        find_interpreter(hanging)


def test_core_is_what_it_needs() -> None:
    assert {name.replace("_", "-") for name in CORE} == set(interpreter_module.NEEDS)


def test_worker_half_needs_no_other_package(python: Path) -> None:
    code = "import sys, mgpu_nb.engines.worker; print(sorted({m.partition('.')[0] for m in sys.modules}))"
    boot = find_interpreter(python).boot()
    said = subprocess.run(
        [python, "-c", boot + code], capture_output=True, text=True, check=True, cwd="/"
    ).stdout
    assert not {"torch", "numpy", "psutil", "pandas", "threadpoolctl"} & set(said.split("'"))
