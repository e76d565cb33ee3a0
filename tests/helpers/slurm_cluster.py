"""A SLURM of this machine for tests: its own controller and daemons on loopback, two machines, two fake GPUs each."""

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "scontrol", "sinfo")

CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
SlurmctldPort={port}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdSpoolDir={folder}/spool-%n
StateSaveLocation={folder}/state
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SlurmdParameters=config_overrides
ReturnToService=2
GresTypes=gpu
KillWait=2
{nodes}
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> list[str]:
    """Programs of SLURM that are not on the PATH."""
    return [name for name in PROGRAMS if shutil.which(name) is None]


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


class Cluster:
    """Up when it is made, gone after `stop`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        host = socket.gethostname().partition(".")[0]
        control, *ports = free_ports(3)
        self.names = ["n1", "n2"]
        nodes = "\n".join(
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=4 RealMemory=2000 Gres=gpu:2 "
            "State=UNKNOWN"
            for name, port in zip(self.names, ports, strict=True)
        )
        for name in ("state", "log", *(f"spool-{name}" for name in self.names)):
            (folder / name).mkdir(parents=True)
        self.conf = folder / "slurm.conf"
        self.conf.write_text(
            CONF.format(host=host, user=getpass.getuser(), port=control, folder=folder, nodes=nodes)
        )
        (folder / "gres.conf").write_text("Name=gpu File=/dev/null,/dev/zero\n")
        self.environ = {**os.environ, "SLURM_CONF": str(self.conf)}
        try:
            self._run("slurmctld", "-f", str(self.conf))
            for name in self.names:
                self._run("slurmd", "-f", str(self.conf), "-N", name)
            self._wait_for(lambda: self._run("sinfo", "-h", "-N", "-o", "%T").split() == ["idle"] * 2, 120)
        except BaseException:
            self.stop()
            raise

    def _run(self, *command: str) -> str:
        done = subprocess.run(command, env=self.environ, capture_output=True, text=True, timeout=60)
        if done.returncode:
            logs = "".join(file.read_text()[-2000:] for file in (self.folder / "log").iterdir())
            raise RuntimeError(f"{command}: {done.stdout}{done.stderr}\n{logs}")
        return done.stdout

    def _wait_for(self, true: Callable[[], bool], seconds: float) -> None:
        end = time.monotonic() + seconds
        while True:
            with contextlib.suppress(RuntimeError):
                if true():
                    return
            if time.monotonic() > end:
                logs = "".join(file.read_text()[-2000:] for file in (self.folder / "log").iterdir())
                raise TimeoutError(f"the cluster after {seconds} s: {self._run('sinfo')}\n{logs}")
            time.sleep(0.05)

    def stop(self) -> None:
        with contextlib.suppress(RuntimeError, OSError):
            self._run("scancel", "--state=RUNNING", "--user", getpass.getuser())
            self._wait_for(lambda: not self._run("squeue", "-h").strip(), 20)
        daemons = []
        for file in self.folder.glob("*.pid"):
            with contextlib.suppress(ValueError, psutil.NoSuchProcess):
                daemon = psutil.Process(int(file.read_text()))
                daemons += [daemon, *daemon.children(recursive=True)]
        for daemon in daemons:
            with contextlib.suppress(psutil.NoSuchProcess):
                daemon.send_signal(signal.SIGTERM)
        _, alive = psutil.wait_procs(daemons, timeout=10)
        for daemon in alive:
            daemon.kill()


@contextlib.contextmanager
def slurm_here(folder: Path) -> Iterator[Cluster]:
    """A SLURM that the programs of this process and its children talk to; skips the test where there is none."""
    if missing():
        pytest.skip(f"SLURM is not installed here (apt install slurm-wlm): no {', '.join(missing())}")
    cluster = Cluster(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(cluster.conf))
        try:
            yield cluster
        finally:
            cluster.stop()
