"""A real SLURM of two nodes on this machine's loopback: own munge, free ports, pretended GPUs, nothing left."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

NODES = ("node1", "node2")
GPUS = 4
LIMIT_S = 180.0

_CONF = """\
ClusterName=xrun
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
AuthType=auth/munge
# The second is also how long a requeued job waits; 120 s unless it is set.
AuthInfo=socket={folder}/munge.sock,cred_expire=5
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=100000
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=10
InactiveLimit=0
KillWait=8
MinJobAge=600
MaxArraySize=6
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
{accounting}
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={node1} CPUs=2 RealMemory=4000 Gres=gpu:fake:{gpus}
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={node2} CPUs=2 RealMemory=4000 Gres=gpu:fake:{gpus}
PartitionName=main Nodes=node[1-2] Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=urgent Nodes=node[1-2] MaxTime=INFINITE State=UP PriorityTier=10
"""
_NO_ACCOUNTING = "AccountingStorageType=accounting_storage/none"
_ACCOUNTING = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={accountant}
AccountingStoragePass={folder}/munge.sock
AccountingStorageEnforce=limits
"""
_ACCOUNTANT = """\
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={accountant}
CommunicationParameters=NoInAddrAny
SlurmUser=root
PidFile={folder}/slurmdbd.pid
LogFile={folder}/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_acct_db
"""


def until(holds: Callable[[], Any], what: str, limit_s: float = LIMIT_S) -> Any:
    """Return the first true answer. Fails where there is none in time."""
    end_s = time.monotonic() + limit_s
    while not (answer := holds()):
        assert time.monotonic() < end_s, f"not within {limit_s:.0f} s: {what}"
        time.sleep(0.1)
    return answer


class Cluster:
    """Daemons in the foreground, as children of the tests: none outlives them."""

    def __init__(self, folder: Path, *, accounting: bool = False) -> None:
        self.folder = folder
        self.accounting = accounting
        self.conf = folder / "slurm.conf"
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        names = ("controller", "accountant", *NODES)
        self._words = {"folder": folder, "host": socket.gethostname().partition(".")[0], "gpus": GPUS} | dict(
            zip(names, _free_ports(len(names)), strict=True)
        )

    @property
    def environment(self) -> dict[str, str]:
        """What the clients need to find this SLURM and no other."""
        return {"SLURM_CONF": str(self.conf)}

    def up(self) -> None:
        """Start everything and wait until both nodes are idle."""
        self._write()
        self._start("munged", "munged", "--force", "--foreground", *self._munge())
        until((self.folder / "munge.sock").exists, "munged answers")
        if self.accounting:
            self._start_accounting()
        self.start_controller()
        for node in NODES:
            self.start_node(node)
        until(lambda: self.nodes() == ["idle", "idle"], "both nodes are idle")

    def down(self) -> None:
        """End all jobs, then every daemon, and see that nothing is left."""
        if self._is_up("slurmctld"):
            for more in ([], ["--signal=KILL"]):
                self.run("scancel", "--quiet", "--user=root", *more, check=False)
        for name in ("slurmctld", *NODES, "slurmdbd", "mariadbd", "munged"):
            self._end(name)
        for process in self._own_processes():
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        until(lambda: not list(self._own_processes()), "no process of the cluster is left")
        shutil.rmtree(self.folder)

    def start_controller(self) -> None:
        """Start slurmctld, for the first time or again: it knows its jobs."""
        self._start("slurmctld", "slurmctld", "-D", "-f", str(self.conf))
        until(lambda: self.run("scontrol", "ping", check=False).returncode == 0, "the controller answers")

    def stop_controller(self) -> None:
        """End slurmctld. Jobs go on."""
        self._end("slurmctld")

    def start_node(self, node: str) -> None:
        """Start a node's slurmd."""
        self._start(node, "slurmd", "-D", "-f", str(self.conf), "-N", node)

    def kill_node(self, node: str) -> None:
        """End all that runs on a node at once, as when its power fails."""
        self._end(node, signal.SIGKILL)
        own = dict(self._own_processes(with_environment=True))
        jobs = {process for process, variables in own.items() if f"SLURMD_NODENAME={node}".encode() in variables}
        stepds = {_parent(process) for process in jobs} & own.keys()
        # A training knows nothing of SLURM, but it descends from what does.
        for process in sorted(stepds) + sorted(jobs | _descendants(jobs)):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def nodes(self) -> list[str]:
        """Return the nodes' states."""
        return self.run("sinfo", "-h", "-N", "-p", "main", "-o", "%T", check=False).stdout.split()

    def run(self, *argv: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        """Run one of SLURM's commands."""
        environment = {**os.environ, **self.environment}
        return subprocess.run(argv, env=environment, capture_output=True, text=True, check=check, timeout=180)

    def state(self, job: str) -> str:
        """Return a job's state, as the controller has it."""
        words = self.run("squeue", "-h", "-t", "all", "-j", job, "-o", "%T", check=False).stdout.split()
        return words[0] if words else ""

    def submit(self, *words: str) -> str:
        """Submit a job of the tests' own, and return its id."""
        return self.run("sbatch", "--parsable", "--output=/dev/null", *words).stdout.strip()

    def _write(self) -> None:
        for name in ("state", "dev", "munge", *(f"spool.{node}" for node in NODES)):
            (self.folder / name).mkdir()
        (self.folder / "munge").chmod(0o700)
        key = self.folder / "munge" / "key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        for number in range(GPUS):
            # /dev/null's numbers: SLURM only looks whether the file is there.
            os.mknod(self.folder / "dev" / f"gpu{number}", 0o020666, os.makedev(1, 3))
        gpus = f"NodeName=node[1-2] Name=gpu Type=fake File={self.folder}/dev/gpu[0-{GPUS - 1}]\n"
        (self.folder / "gres.conf").write_text(gpus)
        (self.folder / "cgroup.conf").write_text("CgroupAutomount=no\nConstrainCores=no\nConstrainRAMSpace=no\n")
        accounting = _ACCOUNTING.format(**self._words) if self.accounting else _NO_ACCOUNTING
        self.conf.write_text(_CONF.format(**self._words, accounting=accounting))

    def _munge(self) -> list[str]:
        files = {"key-file": "munge/key", "socket": "munge.sock", "pid-file": "munged.pid", "log-file": "munged.log"}
        return [f"--{name}={self.folder / path}" for name, path in (files | {"seed-file": "munge/seed"}).items()]

    def _start_accounting(self) -> None:
        data = self.folder / "mysql"
        data.mkdir()
        shutil.chown(data, "mysql")
        shutil.chown(self.folder, "mysql")
        to_data = [f"--datadir={data}", "--user=mysql"]
        subprocess.run(
            ["mariadb-install-db", "--no-defaults", *to_data, "--auth-root-authentication-method=socket"],
            check=True,
            capture_output=True,
        )
        at = self.folder / "mysql.sock"
        small = ["--skip-networking", "--innodb-buffer-pool-size=64M", "--innodb-lock-wait-timeout=900"]
        self._start("mariadbd", "mariadbd", "--no-defaults", *to_data, f"--socket={at}", *small)
        client = ["mariadb", "--no-defaults", "-S", str(at), "-e", "create database if not exists slurm_acct_db"]
        until(lambda: self.run(*client, check=False).returncode == 0, "the data base answers")
        conf = self.folder / "slurmdbd.conf"
        conf.write_text(_ACCOUNTANT.format(**self._words))
        conf.chmod(0o600)
        self._start("slurmdbd", "slurmdbd", "-D", MYSQL_UNIX_PORT=str(at))
        until(lambda: self.run("sacctmgr", "-n", "show", "cluster", check=False).returncode == 0, "slurmdbd answers")
        self.run("sacctmgr", "-i", "add", "cluster", "xrun", check=False)

    def _start(self, name: str, *argv: str, **variables: str) -> None:
        environment = {**os.environ, **self.environment, **variables}
        with (self.folder / f"{name}.out").open("ab") as output:
            self._daemons[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *argv],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def _is_up(self, name: str) -> bool:
        return name in self._daemons and self._daemons[name].poll() is None

    def _end(self, name: str, number: int = signal.SIGTERM) -> None:
        if name not in self._daemons:
            return
        daemon = self._daemons.pop(name)
        daemon.send_signal(number)
        try:
            daemon.wait(20)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()

    def _own_processes(self, *, with_environment: bool = False) -> Iterator[Any]:
        """Yield what was started with this cluster's configuration, be it a daemon or a job."""
        mine = f"SLURM_CONF={self.conf}".encode()
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                variables = (entry / "environ").read_bytes().split(b"\0")
                if mine in variables:
                    process = int(entry.name)
                    yield (process, variables) if with_environment else process


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _parent(process: int) -> int:
    with suppress(OSError):
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def _descendants(processes: set[int]) -> set[int]:
    parents = {int(entry.name): _parent(int(entry.name)) for entry in Path("/proc").glob("[0-9]*")}
    found = set(processes)
    while more := {process for process, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def packages_missing(programs: Sequence[str]) -> list[str]:
    """Return which programs are not installed here."""
    return [program for program in programs if shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin") is None]
