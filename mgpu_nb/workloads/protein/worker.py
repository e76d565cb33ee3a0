"""The worker's part: one experiment, from model to structures."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

import torch

from ...context import Worker, worker
from ...options import check_choice
from ...tasks import path_of
from ..threads import one_thread
from . import frames
from .budget import Experiment, evaluations
from .config import Config, canonical
from .designability import Designability
from .flow import NM_PER_ANGSTROM, Flow
from .models import load_model
from .scores import Scorer
from .search import Search
from .structures import inputs_digest, reference_folds, write_pdb

__all__ = ["run_experiment"]

_REPORT_EVERY = 0.2  # seconds


def run_experiment(
    method: str, num_branches: int, config: Config, inputs: str | None = None
) -> dict[str, Any]:
    """Run one method at one branch count; a task of a pool, or a call by hand.

    Uses the device that `mgpu_nb.worker` names. On a CPU it uses one thread, so that its results are
    the same to the last bit whatever runs beside it. Structures are written where the run has a folder.

    Parameters
    ----------
    method
        One of `METHODS`.
    num_branches
        Children per kept state; the n of best_of_n. The baseline, standard, has 1.
    config
        The options.
    inputs
        What `inputs_digest` gave when the run was made; None not to look whether files have changed since.

    Returns
    -------
    dict
        Plain JSON values: ``method``, ``num_branches``, ``config``, ``num_samples``, ``mean_score``,
        ``std_score`` (of the population), ``max_score``, ``min_score``, ``total_time`` (seconds, without
        loading the model), ``time_per_sample``, ``scores``, ``scoring_function``, ``nfe`` (network calls per sample),
        ``structures`` (.pdb files, relative to the run's folder), ``left_out`` (sentence on files of references) and
        ``positions`` of the best sample (angstrom). Of
        best_of_n also ``scores_by_n``: of each sample the best score among its first 1 ... n starts. With designability
        what `Designability` returns, whose time is not in ``total_time``.

    Raises
    ------
    TypeError, ValueError
        If the model or its weights are not what they must be, or files have changed.
    FileNotFoundError
        If the run has a folder and this machine has not.
    """
    check_choice(method, Config.methods, "method")
    if inputs is not None and inputs_digest(config) != inputs:
        raise ValueError(
            "the files of references or checkpoint have changed since the run was started: start it again, so that "
            "all its experiments read the same"
        )
    here = worker()
    if here.folder_note:
        here.need_folder()  # now, not when the work is done
    with one_thread(here.device):
        model = load_model(config, here.device)
        folds = reference_folds(config)
        scorer = Scorer(config.scoring_function, torch.from_numpy(folds.positions).to(here.device))
        report = _Reporter(here, config.num_samples, evaluations(method, num_branches, config))
        flow = Flow(model, config.steps, on_call=report)
        search = Search(flow, scorer, config, here.device)
        report.search = search
        started = time.perf_counter()
        best = search.run(method, num_branches)
        scores = [float(score) for score in best.score.cpu()]
        so_far = search.best_so_far().tolist() if method == "best_of_n" else None
        seconds = time.perf_counter() - started
        report.send()
        designed = Designability(config)(best.x) if config.design_sequences is not None else {}
    traces = frames.positions(best.x).double() / NM_PER_ANGSTROM
    positions = traces.cpu().numpy()
    structures = []
    if here.folder is not None:
        name = here.task or Experiment(method, num_branches).name
        atoms = frames.backbone(traces, frames.rotations(best.x).double()) if flow.frames else traces
        for sample, written in enumerate(atoms.cpu().numpy()):
            relative = f"structures/{name}/sample_{sample:03d}.pdb"
            write_pdb(here.folder / relative, written)
            structures.append(relative)
    spread = torch.tensor(scores, dtype=torch.float64)
    top = int((spread if config.higher_is_better else -spread).argmax())
    left_out = {"gpu_ids", "slots", "methods", "branch_counts", "budget", "python", "output_dir"}
    options = {name: value for name, value in asdict(canonical(config)).items() if name not in left_out}
    options |= {name: path_of(value) for name, value in options.items() if callable(value)}
    result = {
        "method": method,
        "num_branches": num_branches,
        "config": options,
        "num_samples": config.num_samples,
        "mean_score": float(spread.mean()),
        "std_score": float(spread.std(unbiased=False)),
        "max_score": float(spread.max()),
        "min_score": float(spread.min()),
        "total_time": seconds,
        "time_per_sample": seconds / config.num_samples,
        "scores": scores,
        "scoring_function": options["scoring_function"],
        "nfe": flow.evaluations / config.num_samples,
        "structures": structures,
        "left_out": folds.left_out,
        "best_sample": top,
        "positions": [[round(float(value), 3) for value in atom] for atom in positions[top]],
    }
    return result | designed | ({} if so_far is None else {"scores_by_n": so_far})


class _Reporter:
    """Reports the progress of a search, a few times a second."""

    def __init__(self, here: Worker, num_samples: int, expected: int) -> None:
        self.here, self.num_samples, self.expected = here, num_samples, expected
        self.search: Search | None = None
        self.sent = -_REPORT_EVERY

    def __call__(self, flow: Flow) -> None:
        if time.monotonic() - self.sent >= _REPORT_EVERY:
            self.send()

    def send(self) -> None:
        if self.search is None:
            return
        self.sent = time.monotonic()
        nfe = self.search.flow.evaluations / self.num_samples
        values: dict[str, float] = {"progress": min(1.0, nfe / self.expected), "nfe": nfe}
        if self.search.best is not None:
            score = self.search.best.score
            values["best"] = float(score.max() if self.search.scorer.higher_is_better else score.min())
        self.here.report(**values)
