"""Check of a set-up: what every slot is and writes, and the largest batches that fit."""

from __future__ import annotations

import importlib.util
import os
import socket
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...options import NonNegativeInt, PositiveInt, check_options
from ...places import device_names
from ...store.files import atomic_write
from ...tables import Document, Table
from ...tasks import Task
from ...value_of import ValueOf
from ..base import Finished, results_folder
from ..inputs import GpuIds
from .config import Config, Overrides, Profiles
from .job import Pair
from .settings import load_settings

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from .device_manager import Trial

__all__ = ["CheckConfig", "CheckReport", "collect", "pool_options", "tasks"]

PROMPTS, NEW_TOKENS = 4, 8  # of the tiny generation
MEETING = 120.0  # seconds that a slot waits for the others, which load the same models
PRELOAD = "mgpu_nb.workloads.alignment.preload"
SLOT, SAME, FITS = "slot_", "same_tokens", "largest_"


@dataclass(frozen=True)
class CheckConfig:
    """Options of a check: those of the alignment that it is for.

    Raises
    ------
    TypeError, ValueError
        If an option is invalid; the message names it and what is accepted.
    """

    overrides: Overrides = ()
    """Settings as KEY=VALUE."""
    config: str | None = None
    """YAML file of settings."""
    profile: Profiles = ()
    """Settings for cards of 40 or 80 GB, for 2 or 8 GPUs, or for the embedded task."""
    largest: NonNegativeInt = 64
    """Largest batch to try, 0 to try none. On a CPU a batch that does not fit may be ended by the operating system."""
    gpu_ids: GpuIds = None
    """GPUs to check, or cpu for none; all by default."""
    slots: PositiveInt | None = None
    """Number of slots; by default one per GPU (on a machine without one, virtual CPU devices)."""
    output_dir: str | None = None
    """Folder of the run; by default a temporary one."""

    def __post_init__(self) -> None:
        check_options(self)
        self.alignment()

    def alignment(self) -> Config:
        """Options of the alignment."""
        return Config(self.overrides, self.config, self.profile)


def tasks(config: CheckConfig, slots: int) -> list[Task]:
    """A look at each slot, the comparison of what they wrote, and searches for the largest batches, one by one.

    Raises
    ------
    ValueError, OSError, ImportError
        If settings, models or data cannot be read.
    """
    from .device_manager import trials
    from .models import check_pair

    settings = load_settings(config.alignment())
    pairs = [Pair(name, pair.reference, pair.guide) for name, pair in settings.models.items()]
    for pair in pairs:
        check_pair(pair)
    names = [f"{SLOT}{n}" for n in range(slots)]
    found = [
        Task(look, args=(pairs, settings.system.attn_impl, n, slots), name=name)
        for n, name in enumerate(names)
    ]
    found.append(Task(compare, args=(ValueOf(*names),), name=SAME))
    before = SAME
    for trial in trials(settings) if config.largest else ():
        name = f"{FITS}{trial.what}_{trial.pair.family}"
        asked = settings.generation if trial.what == "generation" else settings.training
        key = _KEYS[trial.what]
        args = trial, config.largest, key, getattr(asked, key.rpartition(".")[2])
        found.append(Task(search, args=args, name=name, after=before))
        before = name
    return found


def pool_options(config: CheckConfig) -> dict[str, Any]:
    """Options of the pool: transformers imported once for all workers."""
    return {"preload": (PRELOAD,) if importlib.util.find_spec("transformers") is not None else ()}


_KEYS = {
    "generation": "generation.batch_size",
    "training": "training.micro_batch_size",
    "guide": "training.micro_batch_size",
}


def search(trial: Trial, largest: int, key: str, asked: int) -> dict[str, Any]:
    """Largest batch that fits on the device of this worker, beside that of the settings."""
    from .device_manager import largest_here

    fits = largest_here(trial, largest)
    if not fits:
        words = (
            "not one fits: training.gradient_checkpointing=true, a smaller model or a larger card may help"
        )
    elif fits >= largest:
        words = "larger ones were not tried"
    else:
        words = f"give {key}={fits}" if fits < asked else ""
    return {"models": trial.pair.family, "what": trial.what, "fits": fits, "settings": asked, "": words}


def look(pairs: Sequence[Pair], attn_impl: str, number: int, count: int) -> dict[str, Any]:
    """Look at the slot of this worker: let each reference write a little, greedily and sampled.

    Returns
    -------
    dict
        ``slot``, ``device``, ``uuid``, ``pid``, ``host``, ``tokens`` by family, and ``memory``, see `DeviceMemory`.
    """
    from ...context import worker
    from ..threads import one_thread
    from .device_manager import memory_here, random_tokens
    from .generate import Policy
    from .models import load_model, load_tokenizer

    here = worker()
    _meet(here.need_folder() if here.folder_note else here.folder, number, count)
    tokens: dict[str, list[list[int]]] = {}
    with one_thread(here.device):
        for pair in pairs:
            model = load_model(pair.reference, device=here.device, attn_impl=attn_impl)
            tokenizer = load_tokenizer(pair.reference)
            policy = Policy(model, end_id=tokenizer.end_id, pad_id=tokenizer.pad_id)
            prompts = random_tokens(PROMPTS, 3, tokenizer.size).tolist()
            written = [
                policy.generate(prompts, seeds, max_new_tokens=NEW_TOKENS, batch_size=PROMPTS)
                for seeds in (None, [(n,) for n in range(PROMPTS)])
            ]
            tokens[pair.family] = [list(completion) for some in written for completion in some]
    return {
        "slot": here.slot,
        "device": here.uuid if here.gpu_id is None else f"cuda:{here.gpu_id}",
        "uuid": here.uuid,
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "tokens": tokens,
        "memory": tuple(memory_here(here)),
    }


def _meet(folder: Path | None, number: int, count: int) -> None:
    """Wait until all looks have begun, so that each has a slot of its own."""
    if folder is None:
        return
    (folder / f".meeting-{number}").touch()
    end = time.monotonic() + MEETING
    while any(not (folder / f".meeting-{n}").exists() for n in range(count)) and time.monotonic() < end:
        time.sleep(0.02)


def compare(looks: Sequence[dict[str, Any]]) -> int:
    """Number of tokens that all slots wrote alike.

    Raises
    ------
    RuntimeError
        If one of them wrote others than the first.
    """
    first, names = looks[0], device_names([(each["device"], each["host"]) for each in looks])
    for each, name in zip(looks[1:], names[1:], strict=True):
        for family, tokens in first["tokens"].items():
            if each["tokens"][family] != tokens:
                raise RuntimeError(
                    f"models.{family} writes other tokens on {name} (slot {each['slot']}) than on "
                    f"{names[0]} (slot {first['slot']}): these devices do not compute alike"
                )
    return sum(len(row) for tokens in first["tokens"].values() for row in tokens)


class CheckReport(Document):
    """What a check found.

    Parameters
    ----------
    run
        The run.

    Attributes
    ----------
    folder
        Its folder; it is removed unless ``output_dir`` named one.
    same
        Number of tokens that all slots wrote alike; None if they did not.
    slots, batches
        Rows of the tables of slots and of largest batches.
    """

    def __init__(self, run: Finished) -> None:
        self.folder = run.folder
        values = {record.name: record.value for record in run.records if record.ok}
        looks = [value for name, value in values.items() if name.startswith(SLOT)]
        self._looks = sorted(looks, key=lambda each: int(each["slot"]))
        self.same: int | None = values.get(SAME)
        names = device_names([(each["device"], each["host"]) for each in self._looks])
        self.slots = [
            (each["slot"], name, each["uuid"], each["pid"], *map(_gb, each["memory"][1:]))
            for each, name in zip(self._looks, names, strict=True)
        ]
        self.batches = [tuple(value.values()) for name, value in values.items() if name.startswith(FITS)]

    def _content(self) -> Iterable[str | Table]:
        from .device_manager import DeviceMemory, memory_lines

        devices = len({(each["host"], each["uuid"]) for each in self._looks})
        yield f"{len(self._looks)} slots in {len({each['pid'] for each in self._looks})} processes on {devices} devices"
        if self.same is not None:
            yield f"All slots wrote the same {self.same} tokens."
        head = [("slot", "n"), ("device", ""), ("uuid", "m"), ("process", "n")]
        yield Table([*head, *((name, "n") for name in _MEMORY)], self.slots, "slots")
        found = [DeviceMemory(*each["memory"]) for each in self._looks]
        names = device_names(
            [(memory.device, each["host"]) for memory, each in zip(found, self._looks, strict=True)]
        )
        yield from memory_lines(m._replace(device=name) for m, name in zip(found, names, strict=True))
        if self.batches:
            yield Table(_BATCHES, self.batches, "largest batches")

    def frame(self) -> pd.DataFrame:
        """Table of the slots; memory in units of 2**30 bytes."""
        import pandas as pd

        return pd.DataFrame(self.slots, columns=["slot", "device", "uuid", "process", *_MEMORY])

    def plot(self, ax: Axes | None = None) -> Axes:
        """Bars of the largest batches that fit, beside those of the settings."""
        import pandas as pd

        rows = [(f"{what}, {family}", fits, asked) for family, what, fits, asked, _ in self.batches]
        frame = pd.DataFrame(rows, columns=["", "fits", "settings"]).set_index("")
        if frame.empty:
            raise ValueError("no batches were tried: give largest, the largest batch to try")
        return frame.plot.barh(ax=ax, xlabel="examples in a batch")

    def save(self, folder: str | Path | None = None) -> list[Path]:
        """Path of ``check.csv``, the table of the slots, if a folder is given or was kept."""
        if folder is None and (self.folder is None or not self.folder.is_dir()):
            return []
        path = results_folder(self.folder, folder) / "check.csv"
        with atomic_write(path) as part:
            self.frame().to_csv(part, index=False)
        return [path]


_MEMORY = ("GB allocated", "GB reserved", "GB total")
_BATCHES = [("models", ""), ("what", ""), ("fits", "n"), ("settings", "n"), ("", "")]


def _gb(size: int) -> float:
    return round(size / 2**30, 2)


def collect(run: Finished, config: CheckConfig | None = None) -> CheckReport:
    """Report of a check.

    Raises
    ------
    ValueError
        If no slot could be looked at.
    """
    report = CheckReport(run)
    if not report.slots:
        raise ValueError("no slot could write: the logs of the run say why")
    return report
