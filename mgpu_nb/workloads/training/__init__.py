"""training: a gang of processes that train one model, yours or the emulator of a land column.

DistributedDataParallel or FSDP, every setting doing what it says, and the same loss curve on any number of ranks. ::

    from mgpu_nb.workloads import training

    run = training.start(training.preset("minimal", world_size=2, output_dir="results"))
    training.show(run)                  # live curves, in a notebook
    report = training.collect(run.wait())
    report.plot()

The same from a shell is ``mgpu-nb training --preset minimal --world_size 2 --output_dir results``, under torchrun or
srun ``python -m mgpu_nb.workloads.training ...``; ``mgpu-nb slurm training ...`` writes the script for a cluster.

A model of your own needs three functions, from a notebook cell as well::

    config = training.Config(model=Net, data=lambda: (train, validation), loss=torch.nn.functional.cross_entropy)

or ``mgpu-nb training --preset plain --model mymodule:Net --data mymodule:data --loss mymodule:loss``, and
`Report.model` has it back, trained.
`mgpu_nb.workloads.training.examples` has three of some thirty lines. The functions, of which each is given the `Config`
and the device (``"cuda:0"``) as well if it has parameters ``config`` and ``device``:

``model()``
    A `torch.nn.Module`. Every rank calls it, with torch, numpy and random seeded by ``seed``, as `data`.
``data()``
    Two datasets, for training and validation, or one, of which ``validation_share`` is held out; the same on every
    rank. A map-style dataset is shuffled in each epoch. An iterable one keeps its order: every rank reads all of it and
    keeps each world-th sample, and a resume within an epoch reads on to where it was; ``set_epoch(epoch)`` is called
    where there is one. Random numbers that a sample draws are its own, whichever rank or loader process draws them. A
    TensorDataset, and a dataset with ``batch(numbers)`` and ``device``, makes a whole batch at once. A resume refuses
    another number of samples, and other samples of a TensorDataset, a Subset, and a dataset with a text
    ``content_digest``.
``loss(outputs, targets)``
    The mean over the samples of the batch, one value for each [b], or (sum, count) where other things are counted,
    tokens say: gradients are then those of the sum over all ranks divided by the count over all ranks.
``metrics(outputs, targets)``
    A mapping of values of these three kinds, numbers of Python and numpy among them; their means over all held-out
    samples are reported, NaN where there is nothing to measure. With one that is called ``..._mse`` comes its root,
    ``..._rmse``. ``loss``, ``validation``, ``learning_rate`` and ``epoch`` are names of the trainer's own.
``forward(model, batch)``
    Outputs. By default ``model(*batch[:-1])`` for tuples and lists and ``model(**batch)`` for mappings; ``targets`` are
    ``batch[-1]``, and the mapping itself.
``optimizer(parameters, lr=...)``
    As the classes of `torch.optim`; one whose first parameter is called ``model`` is given the model.
``predict(outputs, targets)``
    A mapping of arrays [b, ...] that ``predictions/held_out.npz`` has for all held-out samples, in order.
``collate(samples)``
    A batch, moved to the device afterwards.

Dropout and a batch norm without ``sync_batch_norm`` see a rank's part of a batch, so they alone differ with the world.

Data of the emulator are a generated land, or your own (``data``): .parquet, .pkl (with ``trust``; .pickle, .gz, .bz2
and .xz as well) or .npz files, a folder or a pattern of them, in the layout of the public AI4BGC batches. A row is a
column of land. Columns of a table that begin with ``Y_`` are outputs, all others inputs; cells are numbers, lists (of
plant types), lists of lists (rows with layers), and of the forcings ``FLDS``, ``PSRF``, ``FSDS``, ``QBOT``,
``PRECTmms``, ``TBOT`` months. Shapes are those of the data, and the emulator is built for them. What else may be done
is an option each: `Reading` lists them, and what the public loader does. Dates, texts, ids, latitude and longitude are
left out unless an option asks for them; NaN, infinity and fill values (1e36, -9999, ...) are refused, filled or
dropped, by ``missing``; complex numbers are refused. ::

    mgpu-nb training check --data 'batches/*.pkl' --trust     # reads and describes, trains nothing

Of the emulator `Report.data` says what was done to which column, `Report.outputs` has errors in the units of the
outputs and R2, `Report.carbon` whether the predicted carbon closes.

A resume over files whose content has changed is refused: their columns would be split anew, and validated on what was
trained. ``start(config, resume=False)`` trains anew in a folder below.

The folder of a training holds ``model.safetensors``, ``training_results.json``, ``training_validation_losses.csv`` and,
of the held-out samples, ``predictions/held_out.npz``; of the emulator ``scalar`` [n, k], ``vector`` [n, v, p],
``matrix`` [n, m, r, c], ``true_...`` and ``column``, and beside it ``predictions/scalar.csv`` and ``normalisation.npz``
(``<part>_mean``, ``<part>_std``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

from .config import CONFIGS, PRESETS, CheckConfig, Config, named, preset

if TYPE_CHECKING:
    from .emulator import Emulator
    from .land import Land, generate
    from .layout import Layout
    from .reader import read_land, write_land
    from .reading import Reading
    from .report import CheckReport, Report, collect, collect_check, speedup_table
    from .trainer import Trainer
    from .views import show
    from .workload import WORKLOAD, batch_job, start

# Loaded on first use: the options alone need no torch.
__getattr__, _, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "emulator": ["Emulator"],
        "land": ["Land", "generate"],
        "layout": ["Layout"],
        "reader": ["read_land", "write_land"],
        "reading": ["Reading"],
        "report": ["CheckReport", "Report", "collect", "collect_check", "speedup_table"],
        "trainer": ["Trainer"],
        "views": ["show"],
        "workload": ["WORKLOAD", "batch_job", "start"],
    },
)
__all__ = [
    "CONFIGS",
    "PRESETS",
    "WORKLOAD",
    "CheckConfig",
    "CheckReport",
    "Config",
    "Emulator",
    "Land",
    "Layout",
    "Reading",
    "Report",
    "Trainer",
    "batch_job",
    "collect",
    "collect_check",
    "generate",
    "named",
    "preset",
    "read_land",
    "show",
    "speedup_table",
    "start",
    "write_land",
]


def __dir__() -> list[str]:
    return sorted(__all__)
