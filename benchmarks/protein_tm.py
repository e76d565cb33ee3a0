"""Batched TM-score search against tmtools, per pair, side by side in one run.

    python benchmarks/protein_tm.py

Pairs are samples of 1 angstrom noise about generated folds, so that most score above 0.7, where the two must agree
to 1e-3. One thread, the best of three runs of each. Ends with 1 where tmtools is faster or the scores differ.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np
import tmtools
import torch

from mgpu_nb.workloads.protein import generate_folds
from mgpu_nb.workloads.protein.tm_score import tm_score

PAIRS = 256


def best_of_three(score: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    """Seconds per pair, and the scores."""
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        scores = score()
        seconds.append(time.perf_counter() - started)
    return min(seconds) / PAIRS, scores


def main() -> int:
    torch.set_num_threads(1)
    failed = False
    print(
        f"{'L':>4}  {'pairs':>5}  {'batched':>10}  {'tmtools':>10}  {'ratio':>6}  {'largest difference above 0.7':>28}"
    )
    for length in (50, 100):
        folds = torch.from_numpy(generate_folds(length)).repeat(PAIRS // 8, 1, 1)
        draws = torch.Generator().manual_seed(0)
        samples = folds + torch.randn(folds.shape, generator=draws, dtype=torch.float64)
        sequence = "A" * length
        pairs = list(zip(samples.numpy(), folds.numpy(), strict=True))
        batched, ours = best_of_three(lambda s=samples, f=folds: tm_score(s, f).numpy())
        single, theirs = best_of_three(
            lambda s=sequence, p=pairs: np.array([tmtools.tm_align(a, b, s, s).tm_norm_chain2 for a, b in p])
        )
        alike = theirs > 0.7
        difference = np.abs(ours - theirs)[alike].max()
        failed |= bool(batched >= single or difference > 1e-3)
        times = f"{1e3 * batched:>7.2f} ms  {1e3 * single:>7.2f} ms  {single / batched:>5.1f}x"
        print(f"{length:>4}  {PAIRS:>5}  {times}  {difference:>15.5f} ({alike.sum()} pairs)")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
