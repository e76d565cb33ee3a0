"""Who holds a GPU: named by user and command, without secrets."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from fake_nvml import GIB, FakeNvml, gpus, install

from mgpu_nb.hardware import holders as module
from mgpu_nb.hardware.holders import Holder, held_by, holders, short_command
from mgpu_nb.hardware.slots import devices

USER = module._name_of(os.getuid())


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_remembered", {})


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["/home/ana/env/bin/python3.11", "/home/ana/work/train.py", "--key", "s3cret"], "python3.11 train.py"),
        (["python", "-u", "-W", "ignore", "-X", "dev", "train.py", "s3cret"], "python train.py"),
        (["python", "-Xdev", "-m", "vllm.server", "--api-key", "s3cret"], "python -m vllm.server"),
        (["python", "-c", "key = 's3cret'"], "python"),
        (["python"], "python"),
        (["python", "-m"], "python"),
        (["/usr/bin/python", "-m", "ipykernel_launcher", "-f", "/run/kernel-s3cret.json"], "ipykernel"),
        (["./serve", "--token", "s3cret", "model"], "serve"),
        (["mysql", "-ps3cret", "db"], "mysql"),
        (["env", "KEY=s3cret", "train"], "env"),
        (["aws", "s3://key:s3cret@bucket"], "aws"),
        (["sh", "curl -H s3cret"], "sh"),
        (["-bash"], "bash"),
        (["python train.py --key=s3cret"], "python train.py"),  # a title that the process gave itself
        (["ray::fit"], "ray::fit"),
        (["evil\x1b[31m", "a\u202eb"], "evil\ufffd[31m a\ufffdb"),
        (["python", f"{'x' * 60}.py"], f"python {'x' * 32}…"),
        ([], ""),
    ],
)  # fmt: skip
def test_a_command_is_its_program_and_its_first_argument(arguments: list[str], shown: str) -> None:
    assert short_command(arguments) == shown
    assert "s3cret" not in shown
    assert len(shown) <= 40


@pytest.fixture
def program(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process of no child of this package: ``python train.py``."""
    script = tmp_path / "train.py"
    script.write_text("import sys\nprint('ready', flush=True)\nsys.stdin.read()\n")
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, str(script), "--key", "s3cret"], stdin=pipe, stdout=pipe
    ) as process:
        assert process.stdout
        process.stdout.readline()
        yield process


def held(program: subprocess.Popen[bytes]) -> str:
    return f"{USER}: {Path(sys.executable).name} train.py (pid {program.pid})"


def test_a_holder_is_named_by_user_and_command(program: subprocess.Popen[bytes]) -> None:
    first, second = holders({os.getpid(): GIB, program.pid: 3 * GIB})
    assert (first.pid, first.size, first.user) == (program.pid, 3 * GIB, USER)
    assert str(first) == held(program)
    assert (second.command, second.ours) == ("this process", True)
    assert first.ours  # a child of this process


def test_what_cannot_be_read_is_a_pid(monkeypatch: pytest.MonkeyPatch) -> None:
    (gone,) = holders({2**22 + 1: GIB})
    assert str(gone) == "pid 4194305"
    assert not gone.ours

    def refuse(self: psutil.Process) -> list[str]:
        raise psutil.AccessDenied(self.pid)

    monkeypatch.setattr(psutil.Process, "cmdline", refuse)
    (hidden,) = holders({os.getppid(): None})
    assert hidden.user
    assert hidden.command == psutil.Process(os.getppid()).name()[:40]


def test_holders_are_the_largest_first_and_counted() -> None:
    many = [Holder(n, n * GIB, "ana", f"job{n}") for n in (5, 4, 3, 2)]
    assert held_by(many) == (
        "ana: job5 (pid 5) 5.0 GiB; ana: job4 (pid 4) 4.0 GiB; ana: job3 (pid 3) 3.0 GiB; and 1 more"
    )
    assert held_by([Holder(7)]) == "pid 7"
    assert held_by([]) == ""


@pytest.mark.slow
def test_a_worker_of_another_process_is_named_by_its_parent(tmp_path: Path) -> None:
    script = tmp_path / "other.py"
    script.write_text(
        "import os, sys\nfrom mgpu_nb import GPUPool\n"
        "with GPUPool('cpu', 1) as pool:\n    print(pool.submit(os.getpid).result(), flush=True)\n"
        "    sys.stdin.read()\n"
    )
    pipe = subprocess.PIPE
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen([sys.executable, str(script)], stdin=pipe, stdout=pipe, env=environment) as other:
        assert other.stdout
        pid = int(other.stdout.readline())
        (holder,) = holders({pid: GIB})
        # Of a child of this process, and so ours; to a stranger it is that of the script.
        assert holder.command == "worker of this process"
        process = psutil.Process(pid)
        assert (
            module._worker_of(process.parents())
            == f"worker of {Path(sys.executable).name} other.py {other.pid}"
        )


def test_a_look_costs_no_more_than_before(
    monkeypatch: pytest.MonkeyPatch, program: subprocess.Popen[bytes]
) -> None:
    looks = []
    describe = module._describe

    def count(pid: int) -> Holder:
        looks.append(pid)
        return describe(pid)

    monkeypatch.setattr(module, "_describe", count)
    for _ in range(5):
        holders({program.pid: GIB, os.getpid(): GIB})
    assert sorted(looks) == sorted([program.pid, os.getpid()])
    later = time.monotonic() + module.REMEMBERED
    monkeypatch.setattr(time, "monotonic", lambda: later)
    holders({program.pid: GIB})
    assert looks[2:] == [program.pid]
    assert list(module._remembered) == [program.pid]  # what was not asked for again is forgotten


def test_the_table_of_devices_names_them(
    monkeypatch: pytest.MonkeyPatch, program: subprocess.Popen[bytes]
) -> None:
    cards = gpus("NVIDIA L4", "NVIDIA L4")
    cards[1].compute = [(program.pid, 3 * GIB)]
    fake: FakeNvml = install(monkeypatch, cards)
    table = devices()
    assert table[0].holders == ()
    assert [holder.pid for holder in table[1].holders] == [program.pid]
    lines = str(table).splitlines()
    assert "held by" in lines[1]
    assert f"{held(program)} 3.0 GiB" in lines[3]
    assert table.frame()["holders"].tolist() == ["", f"{held(program)} 3.0 GiB"]
    assert "s3cret" not in table._repr_html_()
    assert fake.calls["nvmlDeviceGetComputeRunningProcesses"] == 2
