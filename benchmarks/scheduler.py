"""Cost of the scheduler alone: an engine without processes runs jobs in virtual time on 10, 100 and 1,000 slots.

    python benchmarks/scheduler.py --jobs 1000000

Prints decisions (a job assigned, its end taken) per second of CPU time and bytes per queued job.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import tracemalloc
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))

from virtual import ENVIRONMENT, LoadEngine, make_dispatcher

from mgpu_nb.engines import payload
from mgpu_nb.scheduler.job import FutureJob


def measure(slots: int, jobs: int, isolated: bool) -> dict[str, float]:
    call = payload.dumps_call(pow, (2, 2), {}).body
    queue = [FutureJob(payload.Payload(call), ENVIRONMENT, 1) for _ in range(jobs)]
    engine = LoadEngine(slots)
    dispatcher = make_dispatcher(engine, isolated=isolated)
    dispatcher.submit(*queue)
    dispatcher.close()
    began = time.process_time()
    dispatcher.run()
    seconds = time.process_time() - began
    assert all(job.future.done() for job in queue)
    return {"slots": slots, "jobs": jobs, "microseconds": 1e6 * seconds / jobs, "per_second": jobs / seconds}


def bytes_per_job(jobs: int = 20_000) -> float:
    """Bytes that a queued call takes, its future included."""
    engine = LoadEngine(1)
    dispatcher = make_dispatcher(engine)
    call = payload.dumps_call(pow, (2, 2), {}).body
    tracemalloc.start()
    dispatcher._enqueue([FutureJob(payload.Payload(call), ENVIRONMENT, 1) for _ in range(jobs)])
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    dispatcher.workers.close()
    dispatcher.loop.close()
    return size / jobs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=200_000, help="number of jobs for each number of slots")
    parser.add_argument("--slots", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    rows = []
    for isolated in (False, True):
        for slots in options.slots:
            row = measure(slots, options.jobs, isolated) | {"isolation": "task" if isolated else "worker"}
            rows.append(row)
            first = next(r for r in rows if r["isolation"] == row["isolation"])
            print(
                f"{slots:5d} slots, isolation={row['isolation']:6}: {row['per_second']:9,.0f} decisions/s, "
                f"{row['microseconds']:6.1f} us a job ({row['microseconds'] / first['microseconds']:.2f} of "
                f"{first['slots']} slots)",
                flush=True,
            )
    size = bytes_per_job()
    print(f"{size:,.0f} bytes per queued job")
    if options.json:
        options.json.write_text(json.dumps({"rows": rows, "bytes_per_job": size}, indent=1))


if __name__ == "__main__":
    main()
