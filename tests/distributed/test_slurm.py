"""Batch scripts: what they ask for, what they start, what is refused."""

import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mgpu_nb.distributed import slurm
from mgpu_nb.distributed.slurm import BatchJob, SubmitError, render_script, submit, write_script


def directives(script: str) -> dict[str, str]:
    return dict(
        line.removeprefix("#SBATCH --").split("=", 1)
        for line in script.splitlines()
        if line.startswith("#SBATCH --") and "=" in line
    )


def commands(script: str) -> list[str]:
    return [line for line in script.splitlines() if line and not line.startswith("#")]


def shell(script: str) -> bool:
    """Whether bash can read it."""
    return subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True).stderr == ""


def test_a_script_as_a_user_of_the_cluster_writes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    job = BatchJob(
        nodes=2, gpus_per_node=4, gpu_type="a100", cpus_per_task=8, time="2:00:00", mem="64G", partition="gpu",
        account="m4814", qos="regular", constraint="gpu&hbm80g", job_name="emulator",
        modules=("cuda/12.4", "gcc(x)"), env=("DATA=/scratch/my data", "QUIET="),
    )  # fmt: skip
    script = render_script(job, "some.module", ["--name", "two words", "--n", "3"], tmp_path)
    assert script.startswith("#!/bin/bash\n")
    assert directives(script) == {
        "job-name": "emulator", "chdir": str(tmp_path), "nodes": "2", "ntasks-per-node": "4",
        "gpus-per-node": "a100:4", "cpus-per-task": "8", "mem": "64G", "time": "2:00:00", "partition": "gpu",
        "account": "m4814", "qos": "regular", "constraint": "gpu&hbm80g", "output": f"{tmp_path}/slurm-%j.out",
        "open-mode": "append",
    }  # fmt: skip
    lines = commands(script)
    assert lines[0] == "set -eo pipefail"
    assert lines[1:3] == ["module purge", "module load cuda/12.4 'gcc(x)'"]
    assert lines[3].startswith(f"srun --ntasks-per-node=1 test -e {sys.prefix} || ")
    assert lines[4] == f"source {sys.prefix}/bin/activate"
    assert "export DATA='/scratch/my data'" in lines
    assert "export QUIET=''" in lines
    assert (
        lines[-1]
        == "srun --kill-on-bad-exit=1 --gpu-bind=none python -m some.module --name 'two words' --n 3"
    )
    assert "NCCL" not in script  # only on request
    assert "CUDA_VISIBLE_DEVICES" not in script
    assert shell(script)


def test_nccl_settings_stand_there_where_they_are_asked_for(tmp_path: Path) -> None:
    job = BatchJob(gpus_per_node=1, nccl_debug=True, nccl_no_infiniband=True, nccl_no_p2p=True)
    lines = commands(render_script(job, "m", [], tmp_path))
    assert [line for line in lines if "NCCL" in line] == [
        "export NCCL_DEBUG=INFO", "export NCCL_IB_DISABLE=1", "export NCCL_P2P_DISABLE=1",
    ]  # fmt: skip


@pytest.mark.parametrize("nodes", [1, 2])
def test_torchrun_starts_the_ranks_of_a_machine(tmp_path: Path, nodes: int) -> None:
    job = BatchJob(nodes=nodes, gpus_per_node=4, cpus_per_task=2, launcher="torchrun", requeue=True)
    script = render_script(job, "m", ["--x"], tmp_path)
    asked = directives(script)
    assert (asked["ntasks-per-node"], asked["cpus-per-task"]) == ("1", "8")
    assert "#SBATCH --requeue" in script
    assert "OMP_NUM_THREADS=$((SLURM_CPUS_PER_TASK / 4))" in script
    assert "--nproc-per-node=4" in script
    assert ("--standalone" in script) == (nodes == 1)
    assert ("--rdzv-endpoint" in script) == (nodes == 2)
    assert shell(script)


def test_an_environment_of_conda_is_activated_as_conda_does(tmp_path: Path) -> None:
    (tmp_path / "env" / "conda-meta").mkdir(parents=True)
    lines = commands(render_script(BatchJob(environment=str(tmp_path / "env")), "m", [], tmp_path))
    assert f"conda activate {tmp_path}/env" in lines
    with pytest.raises(ValueError, match="neither a virtual nor a conda environment"):
        render_script(BatchJob(environment=str(tmp_path)), "m", [], tmp_path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"nodes": 0}, "nodes must be an integer >= 1( or None)?, got 0"),
        ({"nodes": True}, "nodes must be an integer >= 1( or None)?, got True"),
        ({"gpus_per_node": -1}, "gpus_per_node must be an integer >= 0( or None)?, got -1"),
        ({"ranks_per_node": 0}, "ranks_per_node must be an integer >= 1( or None)?, got 0"),
        ({"cpus_per_task": 1.5}, r"cpus_per_task must be an integer >= 1 or None, got 1\.5"),
        ({"time": "two hours"}, "time must be minutes, m:ss, h:mm:ss or days-hours, got 'two hours'"),
        ({"time": "1:00:00\n#SBATCH --uid=0"}, "time must be"),
        ({"partition": "gpu --uid=0"}, "partition must be one word"),
        ({"time": "1:60:00"}, "time='1:60:00' is no time"),
        ({"time": "1-24"}, "hours after days to 23"),
        ({"time": "0"}, "time='0' is no limit to SLURM"),
        ({"mem": "64 GB"}, "mem must be a number with K, M, G or T, for example 64G"),
        ({"mem": "64GB"}, "mem must be a number"),
        ({"gpu_type": "a100:4", "gpus_per_node": 4}, "gpu_type must be one name"),
        ({"sbatch": ("--exclusive",)}, r"sbatch\[0\] must be NAME or NAME=VALUE in one word, without dashes"),
        ({"sbatch": ("comment=a b",)}, r"sbatch\[0\] must be NAME or NAME=VALUE"),
        ({"sbatch": ("exclusive\n#SBATCH",)}, r"sbatch\[0\] must be"),
        ({"sbatch": ("time=5",)}, "sbatch: time has an option of its own: give time"),
        ({"sbatch": ("output=x",)}, "sbatch: output is settled by the script"),
        ({"sbatch": ("array=1-4",)}, "with array=1-4%1 they come one after the other"),
        ({"job_name": "my job"}, "job_name must be one word .*, got 'my job'"),
        ({"modules": ("cuda 12",)}, r"modules\[0\] must be one word"),
        ({"env": ("A B=1",)}, r"env\[0\] must be NAME=value"),
        ({"env": ("A=1\nrm",)}, "must be NAME=value in one line"),
        ({"launcher": "mpirun"}, "launcher must be one of srun, torchrun, got 'mpirun'"),
        ({"gpu_type": "a100"}, "gpu_type='a100' needs gpus_per_node"),
        ({"gpus_per_node": 2, "ranks_per_node": 4}, "one rank per GPU"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        BatchJob(**options)


def test_directives_are_passed_on(tmp_path: Path) -> None:
    more = ("mail-type=END,FAIL", "dependency=afterok:17", "exclusive", "signal=B:TERM@60", "array=1-5%1")
    script = render_script(BatchJob(sbatch=more), "m", [], tmp_path)
    assert [line for line in script.splitlines() if line.startswith("#SBATCH")][-5:] == [
        f"#SBATCH --{directive}" for directive in more
    ]


@pytest.mark.parametrize(
    ("asked", "directive"),
    [
        ({"gpus_per_node": 4}, "4"),  # of each of four ranks
        ({"gpus_per_node": 4, "ranks_per_node": 1}, "16"),
        ({"gpus_per_node": 4, "launcher": "torchrun"}, "16"),
        ({"gpus_per_node": 4, "cpus_per_task": 2}, "2"),
        ({}, None),
    ],
)
def test_a_gpu_has_cores(tmp_path: Path, asked: dict[str, Any], directive: str | None) -> None:
    found = directives(render_script(BatchJob(**asked), "m", [], tmp_path))
    assert found.get("cpus-per-task") == directive


def test_loaded_modules_stay_where_that_is_asked_for(tmp_path: Path) -> None:
    job = BatchJob(modules=("cuda",), purge_modules=False)
    assert "module purge" not in render_script(job, "m", [], tmp_path)
    assert not [
        line for line in commands(render_script(BatchJob(), "m", [], tmp_path)) if line.startswith("module")
    ]


def test_a_time_of_minutes_that_looks_like_hours_is_doubted() -> None:
    with pytest.warns(UserWarning, match=r"time='2:00' is 2 minutes and 0 seconds to SLURM"):
        BatchJob(time="2:00")


@pytest.mark.parametrize(
    ("directives", "asks"),
    [((), False), (("gres=gpu:2",), True), (("gres=lustre:1",), False), (("gpus-per-task=1",), True)],
)
def test_gpus_may_be_asked_for_by_a_directive(directives: tuple[str, ...], asks: bool) -> None:
    assert BatchJob(sbatch=directives).asks_for_gpus is asks


def test_an_environment_that_a_machine_does_not_see_ends_the_job_in_words(tmp_path: Path) -> None:
    (place := tmp_path / "on this machine" / "bin").mkdir(parents=True)
    (place / "activate").touch()
    script = render_script(BatchJob(environment=str(place.parent)), "m", [], tmp_path)
    look = next(line for line in commands(script) if "test -e" in line)
    assert subprocess.run(["bash", "-c", look], check=False).returncode == 0
    (place / "activate").unlink()
    place.rmdir()
    place.parent.rmdir()
    done = subprocess.run(["bash", "-c", look], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "on this machine is not there: give --environment a folder that all machines" in done.stderr


def test_a_folder_that_cannot_stand_in_a_directive_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="without spaces"):
        render_script(BatchJob(), "m", [], tmp_path / "my results")


def test_a_script_is_written_once(tmp_path: Path) -> None:
    file = write_script("#!/bin/bash\n", tmp_path / "of" / "a.sbatch")
    assert file.stat().st_mode & stat.S_IXUSR
    assert write_script("#!/bin/bash\n", file) == file
    with pytest.raises(FileExistsError, match="says something else"):
        write_script("#!/bin/sh\n", file)
    assert file.read_text() == "#!/bin/bash\n"


def test_without_a_cluster_it_is_said_where_to_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="run sbatch there"):
        submit(tmp_path / "a.sbatch")


def test_what_slurm_says_of_a_job_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sbatch = tmp_path / "sbatch"
    sbatch.write_text('#!/bin/sh\necho "$@" > "$0.args"\necho "17;cluster"\nexit "${CODE:-0}"\n')
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert submit("a.sbatch", wait=True) == 17
    assert (tmp_path / "sbatch.args").read_text() == "--parsable --wait a.sbatch\n"
    monkeypatch.setenv("CODE", "3")
    script = tmp_path / "a.sbatch"
    script.write_text("#!/bin/bash\n")
    with pytest.raises(SubmitError, match=r"job 17 failed: exit code 3$"):
        submit(script, wait=True)
    script.write_text(f"#!/bin/bash\n#SBATCH --output={tmp_path}/slurm-%j.out\n")
    (tmp_path / "slurm-17.out").write_text("".join(f"line {n}\n" for n in range(30)))
    with pytest.raises(SubmitError, match=r"(?s)exit code 3; .*slurm-17\.out ends with\nline 20\n.*line 29$"):
        submit(script, wait=True)
    sbatch.write_text("#!/bin/sh\necho 'sbatch: error: invalid partition' >&2\nexit 1\n")
    with pytest.raises(SubmitError, match=r"refused a\.sbatch: sbatch: error: invalid partition"):
        slurm.submit("a.sbatch")


def test_an_environment_is_handed_on_and_silence_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sbatch = tmp_path / "sbatch"
    sbatch.write_text(
        '#!/bin/sh\necho "$ASKED" > "$0.env"\nwhile [ "$ASKED" = slowly ]; do :; done\necho 17\n'
    )
    sbatch.chmod(0o755)
    own = {"PATH": str(tmp_path)}
    assert submit(tmp_path / "a.sbatch", env={"ASKED": "soon", **own}) == 17
    assert (tmp_path / "sbatch.env").read_text() == "soon\n"
    monkeypatch.setattr(slurm, "_ANSWER", 0.2)
    with pytest.raises(SubmitError, match=r"sbatch has not answered in 0\.2 s: see whether sinfo does"):
        submit(tmp_path / "a.sbatch", env={"ASKED": "slowly", **own})
