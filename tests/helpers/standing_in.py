"""A stand-in for an agent: says where it is in a file and waits, as ``python standing_in.py FOLDER --name NAME``."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

__all__ = ["agent_command", "agents_in", "until"]

SECONDS = 180.0


def agent_command(folder: Path, *options: str) -> list[str]:
    """Command line of stand-ins that write to this folder; ``--exit 3`` has them end at once."""
    return [sys.executable, __file__, str(folder), *options]


def agents_in(folder: Path) -> dict[str, dict[str, str]]:
    """What the stand-ins of a folder wrote, by name."""
    return {file.stem: json.loads(file.read_text()) for file in folder.glob("*.agent")}


def until(true: Callable[[], object], seconds: float = SECONDS) -> None:
    """Wait until something is true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.1)


def _main() -> None:
    folder, options = Path(sys.argv[1]), dict(zip(sys.argv[2::2], sys.argv[3::2], strict=True))
    if code := options.get("--exit"):
        print("the stand-in of an agent does not want to", flush=True)
        sys.exit(int(code))

    def note(signum: int, _: object) -> None:
        (folder / f"{options['--name']}.{signal.Signals(signum).name}").touch()
        if signum == signal.SIGTERM:
            sys.exit(143)

    for signum in (signal.SIGURG, signal.SIGTERM):
        signal.signal(signum, note)
    invitation = options.get("--connect")
    content = {
        "pid": str(os.getpid()),
        "node": os.environ.get("SLURMD_NODENAME", ""),
        "gpus": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
        "job": os.environ.get("SLURM_JOB_ID", ""),
        "extra": os.environ.get("EXTRA", ""),
        "file": invitation or "",
        "invitation": Path(invitation).read_text() if invitation else "",
        "modes": " ".join(oct(p.stat().st_mode & 0o777) for p in (Path(invitation), Path(invitation).parent))
        if invitation
        else "",
    }
    part = folder / f"{options['--name']}.part"
    part.write_text(json.dumps(content))
    part.rename(part.with_suffix(".agent"))
    end = time.monotonic() + 2 * SECONDS
    while time.monotonic() < end:
        time.sleep(0.2)


if __name__ == "__main__":
    _main()
