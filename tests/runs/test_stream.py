"""What tasks and calls print, passed on: each line once, whole, from where this run began."""

from functools import partial
from pathlib import Path
from typing import Any, cast

import jobs
import pytest
from interrupts import every_line

from mgpu_nb import GPUPool, Run, Task
from mgpu_nb.runs import stream as streams
from mgpu_nb.runs.ledger import Ledger
from mgpu_nb.runs.stream import LogStream
from mgpu_nb.store.files import file_stem, former_stem
from mgpu_nb.tasks import Record


class Job:
    """What a stream reads of a job."""

    def __init__(self, name: str, log_begins: int | None = 0) -> None:
        self.name, self.log_begins = name, log_begins
        self.metrics: dict[str, Any] = {}


class Folder:
    """A run of which a test writes the logs."""

    def __init__(self, path: Path, **jobs: Any) -> None:
        (path / "logs").mkdir()
        self.ledger = Ledger("run", path, list(jobs), jobs=jobs)
        self.stream = LogStream(self.ledger)

    def write(self, name: str, data: bytes) -> None:
        with self.ledger.log_file(name).open("ab") as log:
            log.write(data)

    def begin(self, job: Any) -> None:
        self.ledger.started(job)

    def end(self, name: str) -> None:
        self.ledger.ended(
            Record(name=name, index=0, kind="", status="ok", log=f"logs/{self.ledger.log_file(name).name}")
        )

    def pump(self, stream: LogStream | None = None) -> str:
        out: list[str] = []
        (stream or self.stream).pump(out.append)
        return "".join(out)


def test_lines_come_once_and_whole(tmp_path: Path) -> None:
    a, b = Job("a"), Job("b")
    run = Folder(tmp_path, a=a, b=b)
    assert run.pump() == ""
    run.begin(a)
    assert run.pump() == ""  # it has no log yet
    run.write("a", b"one\ntw")
    run.begin(b)
    run.write("b", b"\x1b[2Jfrom b\n 1%\r99%\r")
    assert run.pump() == "a | one\nb | from b\n"
    assert run.pump() == ""
    run.write("a", b"o\n")
    run.end("b")
    assert run.pump() == "b | 99%\na | two\n"
    run.write("a", b"no end")
    assert run.pump() == ""
    run.end("a")
    assert run.pump() == "a | no end\n"
    assert run.pump() == ""


def test_lines_come_once_whatever_is_interrupted(tmp_path: Path) -> None:
    names = [f"t{n}" for n in range(500)]
    run = Folder(tmp_path, **{name: Job(name) for name in ("a", *names)})
    run.begin(Job("a"))
    printed: list[str] = []
    expected: list[str] = []

    def more() -> None:
        name = names.pop()
        run.write("a", f"line {name}\nand ".encode())
        run.write(name, b"no end")
        run.end(name)
        expected.extend([f"{name} | no end\n", f"a | {'and ' if expected else ''}line {name}\n"])

    more()
    for line, error in every_line(lambda: run.stream.pump(printed.append), ("stream.py",)):
        assert error is None or isinstance(error, KeyboardInterrupt)
        run.stream.pump(printed.append)
        assert "".join(printed) == "".join(expected), line
        more()


def test_what_an_earlier_run_wrote_is_left_out(tmp_path: Path) -> None:
    again, taken_over, silent = Job("again", 4), Job("kept", None), Job("silent", None)
    run = Folder(tmp_path, again=again, kept=taken_over, silent=silent)
    for name in ("again", "kept", "silent"):
        run.write(name, b"old\n")
    run.begin(silent)
    run.begin(again)
    run.write("again", b"new\n")
    run.end("kept")
    assert run.pump() == "again | new\n"
    assert run.pump(LogStream(run.ledger, "kept")) == "old\n"  # unless it is asked for


def test_only_one_task_is_followed_on_request(tmp_path: Path) -> None:
    a, b = Job("a"), Job("b")
    run = Folder(tmp_path, a=a, b=b)
    for job in (a, b):
        run.begin(job)
        run.write(job.name, b"from " + job.name.encode() + b"\n")
    assert run.pump(LogStream(run.ledger, "b")) == "from b\n"


def test_a_log_that_an_earlier_version_named_is_found(tmp_path: Path) -> None:
    names, logs = ["a b", "lr=上海", "none"], tmp_path / "logs"
    run = Run(Ledger("run", tmp_path, names))
    logs.mkdir()
    for index, name in enumerate(names[:2]):
        (logs / f"{former_stem(index, name)}.log").write_text("old\n")
    assert (logs / "00000-a_b.log").exists()
    assert [run.logs(name) for name in names] == ["old\n", "old\n", ""]
    (logs / f"{file_stem(0, 'a b')}.log").write_text("new\n")
    assert run.logs("a b") == "new\n"
    own = Run(Ledger("run", tmp_path, names, jobs={name: cast(Any, Job(name)) for name in names}))
    assert own.logs("lr=上海") == ""  # of a task of another name, for all that is known


def test_what_comes_too_fast_is_left_out_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "ELSEWHERE", 100)
    monkeypatch.setattr(streams, "PIECE", 64)
    a, b = Job("a"), Job("b")
    run = Folder(tmp_path, a=a, b=b)
    run.begin(a)
    run.write("a", b"".join(b"line %04d\n" % n for n in range(1000)))
    printed = run.pump().splitlines()
    assert printed[-1] == "a | line 0999"
    assert printed[0] == f"... {1000 - len(printed) + 1} lines left out, see run.logs('a')"
    assert 5 < len(printed) <= 11
    run.begin(b)
    for name in ("a", "b"):
        run.write(name, b"".join(b"line %04d\n" % n for n in range(50)))
    printed = run.pump().splitlines()
    assert printed[0] == f"... {100 - len(printed) + 1} lines of 2 tasks left out, see run.logs(task)"
    run.write("b", b"after\n")
    assert run.pump() == "b | after\n"


def test_a_run_is_streamed_and_a_log_followed(
    pool: GPUPool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def says(text: str) -> None:
        print(text)

    tasks = [Task(says, text, name=text) for text in ("x", "y", "z")]
    assert pool.run(tasks, name="s", folder=tmp_path / "run").results(60, stream=True) == [None] * 3
    assert sorted(capsys.readouterr().out.splitlines()) == ["x | x", "y | y", "z | z"]
    tasks.append(Task(says, "new", name="new"))
    again = pool.run(tasks, name="s", folder=tmp_path / "run").wait(60, stream=True)
    assert capsys.readouterr().out == "new | new\n"
    again.logs("y", follow=True)
    Run.open(tmp_path / "run").logs(3, follow=True)
    assert capsys.readouterr().out == "y\nnew\n"
    with pytest.raises(KeyError, match="no task 'no'"):
        again.logs("no", follow=True)


def test_an_interrupt_of_a_log_leaves_the_run(
    pool: GPUPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    run = pool.run([Task(jobs.blocks_until, str(tmp_path / "go"), name="t")], folder=tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(run._ledger, "wait_for", interrupted)
        with pytest.raises(KeyboardInterrupt, match=r"run\.cancel"):
            run.wait()
        with pytest.raises(KeyboardInterrupt, match="stopped following the log of 't'"):
            run.logs("t", follow=True)
    (tmp_path / "go").touch()
    assert [record.status for record in run.wait(60).records] == ["ok"]


def test_calls_are_streamed_with_their_slot(pool: GPUPool, capfd: pytest.CaptureFixture[str]) -> None:
    pool.submit(print, "before").result(60)
    assert list(pool.map(print, ["a", "b\nc"], stream=True, progress=False)) == [None, None]
    lines = capfd.readouterr().out.splitlines()
    assert sorted(line.partition(" | ")[2] for line in lines) == ["a", "b", "c"]
    assert {line.partition(" | ")[0] for line in lines} <= {"slot 0", "slot 1"}


def test_output_of_calls_is_kept_by_slot() -> None:
    with GPUPool(slots=1, setup=partial(print, "ready")) as pool:
        pool.submit(print, "grüße ✓").result(60)
        assert pool.logs() == {0: "ready\ngrüße ✓\n"}
        pool.submit(print, "x" * 99, "\n" + "y" * 70_000).result(60)
        assert set(pool.logs()[0]) == {"y", "\n"}  # its line is longer than what is kept
        pool.submit(print, "last").result(60)
        assert pool.logs()[0].splitlines()[-1] == "last"
    assert pool.logs()[0].endswith("last\n")


def fails_after_words() -> None:
    print("\x1b[31mbefore\x1b[0m the error")
    raise ValueError("bad")


def test_the_error_of_a_call_carries_the_end_of_its_output(pool: GPUPool) -> None:
    with pytest.raises(ValueError, match="bad") as caught:
        pool.submit(fails_after_words).result(60)
    assert caught.value.__notes__[0] == "Its worker's output ended with:\nbefore the error"
    with pytest.raises(ValueError, match="bad") as caught:
        pool.submit(jobs.raises).result(60)
    (note,) = caught.value.__notes__
    assert note.startswith("the call of raises on cpu:")
