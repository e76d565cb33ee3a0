"""Pools in a control group whose memory is limited: a real one, where this machine lets a test make it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cgroup import LimitedGroup, limited_group

MIB = 2**20
LIMIT = 1536 * MIB

pytestmark = pytest.mark.slow

PROGRAM = """
    import contextlib, json, logging, time
    from mgpu_nb import GPUPool, Task, devices
    from mgpu_nb.hardware import host
    MIB = 2**20
    logging.disable(logging.CRITICAL)

    def eats(mib):
        block = bytearray(mib * MIB)
        block[::4096] = b"x" * len(block[::4096])
        time.sleep(1.0)
        return mib

    def told(run):
        return [(r.status, r.error, list(r.notes), r.attempt, r.started, r.finished) for r in run.wait(120).records]

    found = {"devices": devices()[0].total, "notes": list(devices().notes), "unused": host.unused()}
"""


@pytest.fixture(scope="module")
def group() -> Iterator[LimitedGroup]:
    with limited_group(LIMIT) as made:
        yield made


def program(group: LimitedGroup, folder: Path, code: str) -> dict[str, Any]:
    done = group.run(f"{PROGRAM}{code}    print(json.dumps(found))\n", folder)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_tasks_that_state_their_memory_fit_into_the_limit(group: LimitedGroup, tmp_path: Path) -> None:
    found = program(
        group,
        tmp_path,
        """
    with GPUPool("cpu", slots=2) as pool:
        try:
            pool.run([Task(eats, 2500, name="big", memory=2500 * MIB)], name="big")
        except ValueError as error:
            found["refused"] = str(error)
        found["six"] = told(pool.run([Task(eats, 900, memory=900 * MIB) for _ in range(3)], name="six"))
""",
    )
    assert found["devices"] == LIMIT
    assert found["unused"] == 0
    assert f"no device has as much (cpu:0 {LIMIT:,}" in found["refused"]
    assert "of cgroup" in found["refused"]
    assert any("RAM is limited by" in note for note in found["notes"])
    assert [record[0] for record in found["six"]] == ["ok"] * 3


def test_a_task_that_is_killed_for_memory_says_what_there_was(group: LimitedGroup, tmp_path: Path) -> None:
    found = program(
        group,
        tmp_path,
        """
    with GPUPool("cpu", slots=1) as pool:
        found["run"] = told(pool.run([Task(eats, 2500), Task(eats, 1)]))
        found["again"] = told(pool.run([Task(eats, 2500)], retry_alone=True))
""",
    )
    (status, error, *_), (other, *_) = found["run"]
    assert (status, other) == ("out-of-memory", "ok")
    assert error.startswith("killed by the system for want of memory; it stated no memory; there are")
    assert f"{LIMIT:,} bytes (memory." in error
    assert error.endswith("it ran alone. Make it smaller, or give this process more memory")
    ((status, error, notes, attempt, *_),) = found["again"]
    assert (status, attempt) == ("out-of-memory", 2)
    assert "attempt 1 ran out of memory, the next was alone on its device and its machine" in notes[0]


def test_tasks_that_do_not_fit_beside_one_another_get_through_alone(
    group: LimitedGroup, tmp_path: Path
) -> None:
    found = program(
        group,
        tmp_path,
        """
    with GPUPool("cpu", slots=2) as pool:
        found["run"] = told(pool.run([Task(eats, 900) for _ in range(4)], retry_alone=True))
""",
    )
    assert [record[0] for record in found["run"]] == ["ok"] * 4
    assert max(record[3] for record in found["run"]) == 2
    assert any("1 other task ran beside it" in note for record in found["run"] for note in record[2])
