"""molecules: a diffusion model draws molecules, a force field guides it, another judges what comes of it.

The samples of each guidance scale are shared out in chunks over any number of devices, and are the same for any. ::

    from mgpu_nb.workloads import molecules

    run = molecules.start(molecules.preset("quick_test", output_dir="results"))
    report = molecules.collect(run.wait())
    report.save()

The same from a shell is ``mgpu-nb molecules --preset quick_test --output_dir results``, under torchrun or srun
``python -m mgpu_nb.workloads.molecules ...``. Positions are in angstrom, energies in eV, forces in eV/angstrom.

What goes in:

- A model, ``model_path``: the .safetensors file of ``mgpu-nb molecules train``, by default the one of this package; or
  one of the public EDM, a folder with a state dict of torch.save, ``generative_model_ema.npy`` or
  ``generative_model.npy``, and the options of its training, ``args.json``, ``config.json`` or, with ``trust``,
  ``args.pickle``. Where it was not trained on QM9 the options also have ``"alphabet": ["C", "H"]`` and
  ``"histogram": {"5": 2, "8": 1}``, molecules by number of atoms.
- Force fields, ``mlff_model`` that guides and ``judge`` that measures: ``potential``, ``gfn2``, ``gfn1``,
  ``uma-s-1p1``, ``uma-s-1p1:weights.pt``, or ``package.module:name`` of an ASE calculator, of an object with ``name``
  and ``forces(numbers [N], positions [N, 3])`` to (energy, forces [N, 3]), or of what makes one without arguments. So
  parameters of ``mgpu-nb molecules fit`` are used: ``def mine(): return Potential("potential.safetensors")``.
- Molecules of your own, for `measure`, `relax` and the pictures: `Molecule`, or, packed by gzip or not, `read_sdf` of
  an .sdf or .mol file with positions in space and `read_xyz` of an .xyz file, plain, extended (symbol and position
  where ``Properties`` says) or of QM9, a molecule for each frame::

      3
      Properties=species:S:1:pos:R:3
      O 0.0 0.0 0.12
      H 0.0 0.76 -0.48
      H 0.0 -0.76 -0.48

Options that matter: ``guidance_scales``, angstrom per eV/angstrom and step, so that scale times steps is what compares;
``sampler`` and ``steps``; ``n_samples`` and ``seed``, which with the index decide a sample; ``relax``, the rival of
guidance with as many force calls; ``relaxation_calls``, which asks for relaxation_gap; ``n_nodes``, atoms per sample.

What comes out, in ``eval/mlff_guided`` of the run's folder. SET is ``baseline``, ``guided_scale_0.005`` and so on,
``relaxed``; KIND is ``baseline``, ``guided`` or ``relaxed``:

- ``SET/molecule_KIND_000.xyz`` a molecule each, ``SET.xyz`` all of a set: extended, with ``index`` of the sample and
  ``energy`` by the judge (eV) in the second line.
- ``chain_baseline/chain_baseline.xyz``, ``chain_guided/chain_guided.xyz``: 100 frames of sample 0 from noise to
  molecule, with ``index`` and ``frame``; guided at the largest scale.
- ``summary.csv``, a row per set: ``set``, ``scale``, ``scale_times_steps``, ``n``, ``missing`` (samples), and with the
  ends of its interval of 95 % as ..._low and ..._high each metric: ``molecule_stability``, ``atom_stability``,
  ``validity``, ``uniqueness``, ``novelty``, ``judge_failures``, ``guide_failures`` (shares, 0 to 1), ``force_rms``,
  ``force_rms_mean``, ``force_max`` (eV/angstrom), ``energy_per_atom`` (eV), ``relaxation_gap`` (eV per atom),
  ``force_calls_per_molecule``. An empty cell is not known. `Report.frame` has these, and seconds_per_molecule.
- ``metrics.json``: ``options``, ``best_guided_stability``, ``best_guidance_scale``, ``stability_improvement`` (over the
  baseline), and ``sets``. A metric is its value, low, high, and n, of how many values.
- Of a set in it, beside the metrics of the table: ``scale``, ``scale_times_steps``, ``steps``, ``n``, ``missing``
  (indices), ``broken`` (samples whose numbers became infinite), ``force_calls`` and ``failed_calls`` of the guide,
  ``judge_calls``, ``judge_failed``; ``difference`` from the baseline, sample by sample; ``trajectory``.
- Of a trajectory, arrays over the watched steps: ``step``, ``sigma`` (noise, 1 to 0), ``force_rms_low``,
  ``force_rms_median``, ``force_rms_high`` (quartiles over samples, eV/angstrom, by ``potential`` for all sets).
- ``times.json``, what differs from run to run, by set: ``seconds_per_molecule``, ``seconds``, ``halved`` (how often
  memory ran out and a batch was halved).

``train`` writes ``edm_small.safetensors``, ``fit`` ``potential.safetensors``; their reports say what they left out.

Functions: `load_model` gives a model, `sample` `Samples` of it, `measure` a dict of arrays [n] of molecules
(``index``, ``atoms``, ``stable`` atoms, ``whole``, ``smiles``, ``energy``, ``force_rms``, ``force_max``, ``gap``,
``judge_calls``, ``judge_failed``, ``seconds``, ``force_calls``, ``failed_calls``), `summarise` its metrics, `compare`
those of two sets, pair by pair. `evaluate` gives energies [B] and forces [B, N, 3] by a field of `load_field`.

How to read the numbers: a set is better than the baseline where the interval of its difference leaves 0 out, not where
those of the two leave each other out. A stable molecule may be in pieces, and a valid one have open valences:
`metrics` has the definitions. force_rms says how far from rest molecules are by the judge, which is not the guide: a
guide that judged itself would flatter itself. If novelty is empty, the model does not say what it was trained on.

What is read and left out the logger ``mgpu_nb.molecules`` says at INFO, what each chunk did at DEBUG.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

from .config import PRESETS, Config, preset

if TYPE_CHECKING:
    from .checkpoint import load_model, save_model
    from .files import write_molecules
    from .forces import check_field, evaluate, load_field
    from .guidance import Guide
    from .metrics import METRICS, compare, summarise
    from .molecule import ALPHABET, Molecule
    from .plan import check_inputs, tasks
    from .reader import read_xyz
    from .relaxation import relax
    from .report import Report, collect
    from .rows import measure
    from .sampler import Samples, sample
    from .sdf import read_sdf
    from .train import TrainConfig, train
    from .turnable import show_molecules
    from .views import draw_molecules
    from .workload import WORKLOAD, start

# Loaded on first use: the options alone need neither torch nor pandas.
__getattr__, _, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "checkpoint": ["load_model", "save_model"],
        "files": ["write_molecules"],
        "forces": ["check_field", "evaluate", "load_field"],
        "guidance": ["Guide"],
        "metrics": ["METRICS", "compare", "summarise"],
        "molecule": ["ALPHABET", "Molecule"],
        "plan": ["check_inputs", "tasks"],
        "reader": ["read_xyz"],
        "relaxation": ["relax"],
        "report": ["Report", "collect"],
        "rows": ["measure"],
        "sampler": ["Samples", "sample"],
        "sdf": ["read_sdf"],
        "train": ["TrainConfig", "train"],
        "turnable": ["show_molecules"],
        "views": ["draw_molecules"],
        "workload": ["WORKLOAD", "start"],
    },
)
__all__ = [
    "ALPHABET",
    "METRICS",
    "PRESETS",
    "WORKLOAD",
    "Config",
    "Guide",
    "Molecule",
    "Report",
    "Samples",
    "TrainConfig",
    "check_field",
    "check_inputs",
    "collect",
    "compare",
    "draw_molecules",
    "evaluate",
    "load_field",
    "load_model",
    "measure",
    "preset",
    "read_sdf",
    "read_xyz",
    "relax",
    "sample",
    "save_model",
    "show_molecules",
    "start",
    "summarise",
    "tasks",
    "train",
    "write_molecules",
]


def __dir__() -> list[str]:
    return sorted(__all__)
