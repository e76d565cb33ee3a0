"""Time from the call to the first all-reduce of two ranks, and what becomes of a dead rank, beside other launchers.

    python benchmarks/launch.py

The second launch of each is told as well where a launcher can be called twice: what is warm stays warm.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RESULT = "result: "
WAIT = 30  # seconds that a peer has to notice a dead rank


def first(path, dead=False):
    """Join an all-reduce; note when it was over. With `dead`, rank 1 is killed before."""
    import torch
    import torch.distributed as dist

    own = not dist.is_initialized()
    if own:
        dist.init_process_group("gloo")
    if dead and dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.all_reduce(torch.ones(1))
    Path(path, str(dist.get_rank())).write_text(str(time.time()))
    if own:
        dist.destroy_process_group()
    return dist.get_rank() if dist.is_initialized() else int(os.environ["RANK"])


def spawned(rank, port, path, dead):
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    first(path, dead)


def ours(path, dead):
    from mgpu_nb import launch

    folder = tempfile.mkdtemp() + "/run"
    return launch(first, path, dead, nprocs=2, folder=folder).results()


def spawn(path, dead):
    import torch.multiprocessing as mp

    mp.spawn(spawned, (29_500 + os.getpid() % 500, path, dead), nprocs=2)


def torchrun(path, dead):
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*run, __file__, "--rank", path, str(int(dead))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}, {len(done.stderr.splitlines())} lines on stderr")


def accelerate(path, dead):
    from accelerate import notebook_launcher

    notebook_launcher(first, (path, dead), num_processes=2)


def torchrunx(path, dead):
    import torchrunx

    return (
        torchrunx.Launcher(hostnames="localhost", workers_per_host=2, backend="gloo")
        .run(first, path, dead)
        .results["localhost"]
    )


LAUNCHERS = {
    "ours": ours,
    "torch.multiprocessing.spawn": spawn,
    "torchrun": torchrun,
    "accelerate notebook_launcher": accelerate,
    "torchrunx": torchrunx,
}


def measure(name, dead):
    """Launch, and print what came of it; in a process of its own, for a launcher may leave things behind."""
    for _ in range(1 if dead else 4):
        path = tempfile.mkdtemp()
        began = time.time()
        try:
            said = f"returned {LAUNCHERS[name](path, dead)!r}"
        except BaseException as error:
            said = f"{type(error).__name__}: {' '.join(str(error).split())[:90]}"
        ended = time.time()
        files = list(Path(path).iterdir())
        reduced = max((float(file.read_text()) for file in files), default=began) - began
        print(RESULT + json.dumps([reduced, ended - began, said, len(files)]), flush=True)


def measured(name, dead):
    command = [sys.executable, __file__, "--measure", name, str(int(dead))]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )
    try:
        out, _ = process.communicate(timeout=WAIT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, _ = process.communicate()
        out += RESULT + json.dumps([0.0, WAIT, f"nothing within {WAIT} s", 0])
    return [json.loads(line.removeprefix(RESULT)) for line in out.splitlines() if line.startswith(RESULT)]


def main():
    if sys.argv[1:2] == ["--rank"]:
        first(sys.argv[2], bool(int(sys.argv[3])))
        return
    if sys.argv[1:2] == ["--measure"]:
        measure(sys.argv[2], bool(int(sys.argv[3])))
        return
    base = 0.0
    for name in LAUNCHERS:
        results = measured(name, dead=False)
        whole = [result for result in results if result[3] == 2]
        if not whole:
            print(f"{name:30} failed here: {results[0][2]}")
            continue
        cold, warm = whole[0][0], min(result[0] for result in whole)
        base = base or warm
        _, seconds, said, _ = measured(name, dead=True)[0]
        print(
            f"{name:30} first {cold:6.3f} s, warm {warm:6.3f} s ({warm / base:5.1f} times ours), {whole[-1][2]}"
        )
        print(f"{'':30} rank 1 killed: {seconds:.1f} s, {said}")


if __name__ == "__main__":
    main()
