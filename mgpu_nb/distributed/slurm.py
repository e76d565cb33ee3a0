"""Batch scripts for SLURM, as a user of the cluster would write them, and their submission."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from ..errors import warn_user
from ..options import Matches, NonNegativeInt, PositiveInt, check_options

__all__ = [
    "BatchJob",
    "SubmitError",
    "last_words",
    "render_commands",
    "render_script",
    "submit",
    "write_script",
]

_TIME = re.compile(r"\d+-\d+(:\d+){0,2}|\d+(:\d+){0,2}")
_MEMORY = re.compile(r"\d+[KMGT]?", re.IGNORECASE)
_TYPE = re.compile(r"[\w.-]+")
_DIRECTIVE = re.compile(r"[a-z][a-z-]*(=[^\s\"']+)?")
_WORD = re.compile(r"[^\s\"']+")  # sbatch reads its lines itself, no shell does
_SETTING = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=[^\n]*")
_OURS = {  # directives that an option of `BatchJob` stands for, and what this script settles itself
    "job-name": "job_name", "nodes": "nodes", "ntasks-per-node": "ranks_per_node", "gpus-per-node": "gpus_per_node",
    "cpus-per-task": "cpus_per_task", "mem": "mem", "time": "time", "partition": "partition", "account": "account",
    "qos": "qos", "constraint": "constraint", "requeue": "requeue", "no-requeue": "requeue",
}  # fmt: skip
_SETTLED = (
    "chdir", "error", "export", "ntasks", "open-mode", "output", "parsable", "test-only", "wait", "wrap",
)  # fmt: skip
_ANSWER = (
    120.0  # seconds that sbatch may take; it tries again for a while where the controller does not answer
)
_CORES = 4  # of a GPU, by default: its process, and what loads data for it
_Word = Annotated[str, Matches(_WORD, "one word without spaces and quotes")]


class SubmitError(RuntimeError):
    """SLURM refused a job, or a job failed that was waited for."""


@dataclass(frozen=True)
class BatchJob:
    """What a batch job asks the cluster for, and how its processes are started.

    Raises
    ------
    ValueError
        If an option is invalid; the message names it and the accepted values.
    """

    nodes: PositiveInt = 1
    """Number of machines."""
    gpus_per_node: NonNegativeInt = 0
    """GPUs on each; 0 for a job without."""
    gpu_type: Annotated[str, Matches(_TYPE, "one name, for example a100")] | None = None
    """Type of GPU, for clusters with several, for example a100."""
    ranks_per_node: PositiveInt | None = None
    """Processes on each machine; by default one per GPU, or one."""
    cpus_per_task: PositiveInt | None = None
    """Cores for each process; by default 4 for each of its GPUs, and without GPUs what the cluster gives."""
    time: Annotated[str, Matches(_TIME, "minutes, m:ss, h:mm:ss or days-hours")] = "1:00:00"
    """Time limit as SLURM writes it: minutes, m:ss, h:mm:ss, days-hours, days-hours:mm or days-hours:mm:ss."""
    mem: Annotated[str, Matches(_MEMORY, "a number with K, M, G or T, for example 64G")] | None = None
    """Memory per machine, for example 64G; megabytes without a unit, 0 for all there is."""
    partition: _Word | None = None
    """Partition to queue in."""
    account: _Word | None = None
    """Account that is charged."""
    qos: _Word | None = None
    """Quality of service."""
    constraint: _Word | None = None
    """Features that the machines must have."""
    job_name: _Word = "mgpu_nb"
    """Name in the queue."""
    modules: tuple[_Word, ...] = ()
    """Environment modules to load."""
    purge_modules: bool = True
    """Whether `modules` stand in place of those that the job is submitted with, which sbatch hands on."""
    environment: str | None = None
    """Folder of the virtual or conda environment; by default the one that runs now."""
    env: tuple[Annotated[str, Matches(_SETTING, "NAME=value in one line")], ...] = ()
    """Variables to set, NAME=value."""
    launcher: Literal["srun", "torchrun"] = "srun"
    """srun starts every rank; torchrun starts those of a machine, srun one torchrun on each."""
    requeue: bool = False
    """Whether SLURM may queue the job again after a failure of a machine; what can resume goes on then."""
    sbatch: tuple[
        Annotated[str, Matches(_DIRECTIVE, "NAME or NAME=VALUE in one word, without dashes")], ...
    ] = ()
    """More directives, as sbatch names them: mail-type=END,FAIL dependency=afterok:17 reservation=x exclusive."""
    nccl_debug: bool = False
    """Set NCCL_DEBUG=INFO."""
    nccl_no_infiniband: bool = False
    """Set NCCL_IB_DISABLE=1."""
    nccl_no_p2p: bool = False
    """Set NCCL_P2P_DISABLE=1."""

    def __post_init__(self) -> None:
        """Check what can be checked without the cluster."""
        for name in ("time", "mem"):  # 60 minutes, 4000 megabytes
            if type(number := getattr(self, name)) is int:
                object.__setattr__(self, name, str(number))
        check_options(self)
        _check_time(self.time)
        for directive in self.sbatch:
            _check_directive(directive)
        if self.gpu_type is not None and not self.gpus_per_node:
            raise ValueError(f"gpu_type={self.gpu_type!r} needs gpus_per_node, their number")
        if self.gpus_per_node and self.ranks > self.gpus_per_node:
            raise ValueError(
                f"ranks_per_node={self.ranks}, and gpus_per_node={self.gpus_per_node}: one rank per GPU"
            )

    @property
    def asks_for_gpus(self) -> bool:
        """Whether it asks for GPUs, by an option or by a directive."""
        return bool(self.gpus_per_node) or any(
            name in ("gpus", "gpus-per-task", "gpus-per-socket") or (name == "gres" and "gpu" in value)
            for name, _, value in (directive.partition("=") for directive in self.sbatch)
        )

    @property
    def cores(self) -> int | None:
        """Cores for each process; None for what the cluster gives."""
        if self.cpus_per_task is None and self.gpus_per_node:
            return _CORES * self.gpus_per_node // self.ranks
        return self.cpus_per_task

    @property
    def ranks(self) -> int:
        """Processes on each machine."""
        return self.ranks_per_node or self.gpus_per_node or 1

    @property
    def world(self) -> int:
        """Processes in all."""
        return self.nodes * self.ranks


def _check_time(time: str) -> None:
    """Refuse a time that SLURM refuses or reads as none; doubt one that is easily meant otherwise."""
    days, _, rest = time.rpartition("-")
    numbers = [int(part) for part in rest.split(":")]
    small = numbers[1:]  # what stands behind a larger unit
    if any(number > 59 for number in small) or (days and numbers[0] > 23):
        raise ValueError(f"time={time!r} is no time: minutes and seconds go to 59, hours after days to 23")
    if not any(numbers) and not int(days or 0):
        raise ValueError(f"time={time!r} is no limit to SLURM, which most clusters refuse: give h:mm:ss")
    if not days and len(numbers) == 2:
        warn_user(
            f"time={time!r} is {numbers[0]} minutes and {numbers[1]} seconds to SLURM; hours are h:mm:ss"
        )


def _check_directive(directive: str) -> None:
    """Refuse a directive that would stand twice, or that the run folder does not go with."""
    name, _, value = directive.partition("=")
    if (option := _OURS.get(name)) is not None:
        raise ValueError(f"sbatch: {name} has an option of its own: give {option}")
    if name in _SETTLED:
        raise ValueError(f"sbatch: {name} is settled by the script: leave it out")
    if name == "array" and not value.endswith("%1"):
        raise ValueError(
            f"sbatch: the jobs of {directive!r} would write to one run folder at once; with "
            f"array={value.partition('%')[0]}%1 they come one after the other, and each goes on from the last"
        )


def render_script(job: BatchJob, module: str, arguments: Sequence[str], output: str | Path) -> str:
    """Script of a job that runs ``python -m module arguments`` as the ranks asked for, in the current folder.

    Parameters
    ----------
    job
        What to ask for.
    module
        A module that can be run by ``-m`` and reads its rank from the environment of torchrun or srun.
    arguments
        For it.
    output
        Folder for what the job writes, ``slurm-<number>.out``; it must be there when the job starts.

    Raises
    ------
    ValueError
        If there is no environment to activate, or the folder's name cannot stand in a directive.
    """
    return render_commands(job, _start(job, module, arguments), output)


def render_commands(job: BatchJob, commands: Sequence[str], output: str | Path) -> str:
    """Script of a job whose first machine runs these lines of bash in its environment; raises as `render_script`."""
    folder, here = str(output), str(Path.cwd())
    for name in (folder, here):
        if not _WORD.fullmatch(name):
            raise ValueError(f"{name!r}: SLURM takes a folder without spaces and quotes")
    gpus = f"{job.gpu_type}:{job.gpus_per_node}" if job.gpu_type else str(job.gpus_per_node)
    by_torchrun = job.launcher == "torchrun"
    asked = {
        "job-name": job.job_name,
        "chdir": here,
        "nodes": str(job.nodes),
        "ntasks-per-node": "1" if by_torchrun else str(job.ranks),
        "gpus-per-node": gpus if job.gpus_per_node else None,
        # One torchrun has the cores of all the ranks that it starts.
        "cpus-per-task": None if job.cores is None else str(job.cores * (job.ranks if by_torchrun else 1)),
        "mem": job.mem,
        "time": job.time,
        "partition": job.partition,
        "account": job.account,
        "qos": job.qos,
        "constraint": job.constraint,
        "output": f"{folder.rstrip('/')}/slurm-%j.out",
        "open-mode": "append",
    }
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH --{name}={value}" for name, value in asked.items() if value is not None),
    ]
    lines += ["#SBATCH --requeue"] if job.requeue else ["#SBATCH --no-requeue"]
    lines += [f"#SBATCH --{directive}" for directive in job.sbatch]
    lines += ["", "set -eo pipefail", ""]
    lines += ["module purge"] if job.modules and job.purge_modules else []
    lines += [f"module load {' '.join(map(shlex.quote, job.modules))}"] if job.modules else []
    lines += _activation(job.environment, job.nodes)
    threads = (
        f"$((SLURM_CPUS_PER_TASK / {job.ranks}))" if by_torchrun and job.ranks > 1 else "$SLURM_CPUS_PER_TASK"
    )
    lines += [
        'if [ -n "$SLURM_CPUS_PER_TASK" ]; then',
        f"    export OMP_NUM_THREADS={threads}",
        "    export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK  # srun does not take it over from sbatch by itself",
        "else",
        "    export OMP_NUM_THREADS=1",
        "fi",
    ]
    lines += [f"export {name}={shlex.quote(value)}" for name, _, value in (s.partition("=") for s in job.env)]
    lines += ["export NCCL_DEBUG=INFO"] if job.nccl_debug else []
    lines += ["export NCCL_IB_DISABLE=1"] if job.nccl_no_infiniband else []
    lines += ["export NCCL_P2P_DISABLE=1"] if job.nccl_no_p2p else []
    return "\n".join([*lines, "", *commands]) + "\n"


def _start(job: BatchJob, module: str, arguments: Sequence[str]) -> list[str]:
    called = f"{module} {' '.join(map(shlex.quote, arguments))}".rstrip()
    if job.launcher == "srun":
        # Each rank takes its GPU by its number on the machine, and sees the others': NCCL needs that.
        bound = " --gpu-bind=none" * bool(job.gpus_per_node)
        return [f"srun --kill-on-bad-exit=1{bound} python -m {called}"]
    if job.nodes == 1:
        return [f"srun torchrun --standalone --nproc-per-node={job.ranks} -m {called}"]
    return [
        "# Machines meet at the first of them, which runs this script, at a port that is free there. They know one",
        "# another by what SLURM has: a machine's own name may mean its loopback, or nothing.",
        r"""address() { scontrol show node "$1" | sed -n "s/.*NodeAddr=\([^ ]*\).*/\1/p"; }""",
        "export -f address",
        'head=$(address "$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)")',
        '[ -n "$head" ] || { echo "scontrol knows no address of the first machine" >&2; exit 1; }',
        "port=$(python -c 'import socket; s = socket.socket(); s.bind((\"\", 0)); print(s.getsockname()[1])')",
        "srun --kill-on-bad-exit=1 \\",
        """    bash -c 'own=$(address "$SLURMD_NODENAME") && exec torchrun --local-addr="$own" "$@"' torchrun \\""",
        f"    --nnodes={job.nodes} --nproc-per-node={job.ranks} --max-restarts=0 \\",
        '    --rdzv-id="$SLURM_JOB_ID" --rdzv-backend=c10d --rdzv-endpoint="$head:$port" \\',
        f"    -m {called}",
    ]


def _activation(environment: str | None, nodes: int) -> list[str]:
    """Lines that activate an environment, once it is seen on all machines; none for an interpreter outside of any."""
    if (
        environment is None
        and sys.prefix == sys.base_prefix
        and not (Path(sys.prefix) / "conda-meta").exists()
    ):
        return []
    place = Path(environment or sys.prefix).expanduser().absolute()
    if (place / "bin" / "activate").exists():
        lines = [f"source {shlex.quote(str(place / 'bin' / 'activate'))}"]
    elif (place / "conda-meta").exists():
        lines = [
            'source "$(conda info --base)/etc/profile.d/conda.sh"',
            f"conda activate {shlex.quote(str(place))}",
        ]
    else:
        raise ValueError(f"environment={str(place)!r} is neither a virtual nor a conda environment")
    told = f"{place} is not there: give --environment a folder that all machines of the job see"
    everywhere = "srun --ntasks-per-node=1 " if nodes > 1 else ""  # which says what machine it fails on
    look = f"{everywhere}test -e {shlex.quote(str(place))}"
    return [f"{look} || {{ echo {shlex.quote(told)} >&2; exit 1; }}", *lines]


def write_script(script: str, path: str | Path) -> Path:
    """Write a script that can be run; one that stands there already is kept, unless it says the same.

    Raises
    ------
    FileExistsError
        If there is another file.
    """
    file = Path(path).expanduser()
    if file.exists() and (not file.is_file() or file.read_text(encoding="utf-8", errors="replace") != script):
        raise FileExistsError(
            f"{file} is there and says something else: give another name (--script), or remove it"
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(script, encoding="utf-8")
    file.chmod(0o755)
    return file


def submit(script: str | Path, *, wait: bool = False, env: Mapping[str, str] | None = None) -> int:
    """Submit a script by sbatch; return the number of the job.

    Parameters
    ----------
    script
        Path of the script.
    wait
        Whether to wait until the job has ended.
    env
        Environment of sbatch, which hands it on to the job; by default that of this process.

    Raises
    ------
    FileNotFoundError
        If there is no sbatch.
    SubmitError
        If SLURM refuses the job, does not answer, or the job fails that was waited for.
    """
    command = ["sbatch", "--parsable", *(["--wait"] if wait else []), str(script)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=env, timeout=None if wait else _ANSWER
        )
    except subprocess.TimeoutExpired:
        raise SubmitError(f"sbatch has not answered in {_ANSWER:g} s: see whether sinfo does") from None
    except FileNotFoundError:
        raise FileNotFoundError(
            f"there is no sbatch on this machine: copy {script} to a login node of the cluster and run sbatch there"
        ) from None
    number = done.stdout.strip().partition(";")[0]
    if done.returncode:
        said = done.stderr.strip() or f"exit code {done.returncode}"
        if number.isdecimal():
            raise SubmitError(f"job {number} failed: {said}{last_words(Path(script), number)}")
        hint = ". Give cpus_per_task a smaller number" if "CPU count" in said else ""
        raise SubmitError(f"sbatch refused {script}: {said}{hint}")
    return int(number)


def last_words(script: Path, number: str, lines: int = 10) -> str:
    """Path and last lines of a job's output, to be appended to a message; empty if it has none."""
    named = re.search(r"^#SBATCH --output=(\S+)$", script.read_text(encoding="utf-8"), re.MULTILINE)
    log = Path(named[1].replace("%j", number)) if named else None
    if log is None or not log.is_file():
        return ""
    found = log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
    return "\n".join([f"; {log} ends with", *found]) if found else ""
