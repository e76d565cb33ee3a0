"""What must come out of the mixture: mean TM-score and network evaluations per sample.

    python benchmarks/protein_scaling.py [SEED ...]

50 residues, 50 steps, 16 samples, noise_scale 1. With several seeds the table has their means. Ends with 1 where scores
do not rise with the branches or exploration does not beat best_of_n at equal evaluations.
"""

from __future__ import annotations

import itertools
import sys

import numpy as np

from mgpu_nb.workloads.protein import Config, run_experiment

EXPERIMENTS = (
    ("standard", 1),
    ("best_of_n", 2),
    ("best_of_n", 4),
    ("best_of_n", 8),
    ("best_of_n", 45),
    ("sde_path_exploration", 2),
    ("sde_path_exploration", 4),
    ("sde_path_exploration", 8),
)


def main(seeds: list[int]) -> int:
    print(f"{'method':<22}{'branches':>8}{'mean':>10}{'std':>8}{'NFE':>7}{'s':>8}")
    means = {}
    for method, branches in EXPERIMENTS:
        results = [
            run_experiment(method, branches, Config(num_samples=16, noise_scale=1.0, seed=seed))
            for seed in seeds
        ]
        scores = np.concatenate([result["scores"] for result in results])
        means[method, branches] = scores.mean()
        seconds = np.mean([result["total_time"] for result in results])
        line = f"{method:<22}{branches:>8}{scores.mean():>10.4f}{scores.std():>8.4f}"
        print(f"{line}{results[0]['nfe']:>7.0f}{seconds:>8.2f}", flush=True)
    rising = all(
        means[method, few] < means[method, many]
        for method in ("best_of_n", "sde_path_exploration")
        for few, many in itertools.pairwise((2, 4, 8))
    )
    ahead = means["sde_path_exploration", 8] > means["best_of_n", 45]
    print(f"monotone in the branches: {rising}; sde_path_exploration(8) above best_of_45: {ahead}")
    return int(not (rising and ahead))


if __name__ == "__main__":
    sys.exit(main([int(seed) for seed in sys.argv[1:]] or [0]))
