"""Which rank of how many: the environments of torchrun and SLURM."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from mgpu_nb.distributed.environment import RankEnvironment, gpus_per_node, group

TORCHRUN = {
    "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "node1",
    "MASTER_PORT": "4711",
}  # fmt: skip
SRUN = {
    "SLURM_PROCID": "4", "SLURM_LOCALID": "1", "SLURM_NODEID": "1", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "77",
    "SLURM_STEP_ID": "2", "SLURM_STEP_NUM_TASKS": "6", "SLURM_STEP_NUM_NODES": "2", "SLURM_NODELIST": "n[1-2]",
    "SLURM_STEP_TASKS_PER_NODE": "3(x2)",
}  # fmt: skip


def environment_of(environ: dict[str, str]) -> RankEnvironment:
    """The environment of a rank, where there is one."""
    found = RankEnvironment.from_env(environ)
    assert found
    return found


def test_torchrun_tells() -> None:
    place = environment_of(TORCHRUN)
    assert place == RankEnvironment(5, 8, 1, 4, "")
    assert place.machines


def test_srun_tells_and_a_restarted_job_is_another() -> None:
    assert environment_of(SRUN) == RankEnvironment(4, 6, 1, 3, "77.2.0")
    assert environment_of({**SRUN, "SLURM_RESTART_COUNT": "1"}).job == "77.2.1"
    uneven = {**SRUN, "SLURM_STEP_TASKS_PER_NODE": "4,2"}
    assert environment_of(uneven).local_world == 2
    one = {**SRUN, "SLURM_STEP_NUM_NODES": "1"}
    assert not environment_of(one).machines


def test_torchrun_within_a_job_of_slurm_comes_first() -> None:
    assert environment_of({**SRUN, **TORCHRUN}).job == ""


def test_a_process_that_stands_alone() -> None:
    assert RankEnvironment.from_env({}) is None
    assert (
        RankEnvironment.from_env({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}) is None
    )  # the batch script itself
    assert RankEnvironment.from_env({**SRUN, "SLURM_STEP_NUM_TASKS": "1"}) is None


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({**TORCHRUN, "RANK": "first"}, "RANK='first'"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR and MASTER_PORT not"),
        ({**SRUN, "SLURM_LOCALID": ""}, "SLURM_LOCALID=''"),
    ],
)
def test_an_environment_that_says_half_is_refused(environ: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        environment_of(environ)


@pytest.mark.parametrize(
    ("text", "count"),
    [("4", 4), ("a100:4", 4), ("a100:2,v100:3", 5), ("gpu:a100:4", 4), ("a100:4(S:0-1)", 4), ("", None)],
)
def test_gpus_of_a_machine_as_slurm_writes_them(text: str, count: int | None) -> None:
    assert gpus_per_node({"SLURM_GPUS_PER_NODE": text} if text else {}) == count


def test_gpus_that_are_no_number_are_refused() -> None:
    with pytest.raises(ValueError, match="SLURM_GPUS_PER_NODE='many'"):
        gpus_per_node({"SLURM_GPUS_PER_NODE": "many"})


def test_a_rank_without_rank_0_gives_up(tmp_path: Path) -> None:
    words = r"rank 1 waited 0\.2 s for rank 0 to write .*meeting-1\.0\.0"
    with (
        pytest.raises(TimeoutError, match=words),
        group(RankEnvironment(1, 2, 1, 2, "1.0.0"), "gloo", tmp_path, 0.2),
    ):
        pass


def test_the_meeting_stays_until_all_have_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With NCCL rank 0 would not wait for the others by itself."""
    monkeypatch.setattr(dist, "init_process_group", lambda *args, **kwargs: None)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    joined = []

    def join() -> None:
        with group(RankEnvironment(1, 2, 1, 2, "3.0.0"), "gloo", tmp_path, 20):
            joined.append(1)

    late = threading.Timer(0.5, join)
    late.start()
    with group(RankEnvironment(0, 2, 0, 2, "3.0.0"), "gloo", tmp_path, 20):
        late.join(20)
        assert joined == [1]
    assert list(tmp_path.iterdir()) == []


def test_ranks_meet_at_a_port_that_rank_0_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    with group(RankEnvironment(0, 1, 0, 1, "9.9.0"), "gloo", tmp_path, 20):
        assert dist.get_world_size() == 1
    assert list(tmp_path.iterdir()) == []
    assert not dist.is_initialized()
