"""The batch script of a run, or of an array of runs: one pure function, and a text that a person can read."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from runner.config import Scheduler
from runner.spec import RunSpec

GOES_ON = 75
"""Exit code of the node program when a run has stopped with a checkpoint and is to go on in the job's next turn."""
# SLURM looks at its clock once in a while only, and srun needs time to end.
_NOTICE_MARGIN_S = 30
# What sbatch takes apart in a line of options.
_SPECIAL = re.compile(r"""[\s"'\\#]""")


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """The xrun that runs on the nodes: this one, on a file system that they share."""

    python: str
    path: str
    """Folder that holds the package `runner`."""
    home: str
    """XRUN_HOME: images and data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """What a run takes of each node."""

    nodes: int
    cpus: int
    gpus: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What is submitted at once: one run, or the runs of an array."""

    name: str
    """The job's name; of one run, its id."""
    folder: Path
    """Where the script lies and SLURM's own output goes; with the name, it tells a job from every other."""
    runs: int | None = None
    """Runs of an array, their folders listed in runs.txt; None: one run, whose folder `folder` is."""


def size_of(spec: RunSpec, nodes: int = 1) -> Size:
    """Return what a run takes of each node: a CPU for each thread, and its share of the GPUs."""
    ranks = -(-spec.ranks // nodes)
    return Size(nodes=nodes, cpus=ranks * spec.hardware.threads, gpus=-(-spec.hardware.gpu_count // nodes))


def batch_script(batch: Batch, size: Size, scheduler: Scheduler, runtime: Runtime) -> str:
    """Return the script that sbatch is given."""
    sections = [
        "#!/bin/bash",
        *_directives(batch, size, scheduler),
        "",
        *_where(batch, runtime),
        *(("", *scheduler.setup) if scheduler.setup else ()),
        "",
        _COMMON.strip("\n"),
        "",
        *(_MEETING.strip("\n").splitlines() if size.nodes > 1 else []),
        f"{_node(runtime, 'begin')} || finish $?",
        "# Nothing of an earlier attempt may still run.",
        f'[ "${{SLURM_RESTART_COUNT:-0}}" = 0 ] || {_srun(size, scheduler)} \\\n    {_node(runtime, "reap")}',
        f"(trap '' USR1 TERM; exec {_srun(size, scheduler)} \\\n    {_node(runtime, 'run')}) &",
        _END.strip("\n"),
    ]
    return "\n".join(sections) + "\n"


def _directives(batch: Batch, size: Size, scheduler: Scheduler) -> list[str]:
    """Return the options, in sbatch's own words: of those that a user may leave open, only what is set."""
    array = (
        f"0-{batch.runs - 1}" + (f"%{scheduler.array_parallelism}" if scheduler.array_parallelism else "")
        if (batch.runs is not None)
        else None
    )
    output = batch.folder / ("slurm/output.txt" if batch.runs is None else "output-%a.txt")
    gres = scheduler.gres or (f"gpu:{size.gpus}" if size.gpus else None)
    options: dict[str, object] = {
        "job-name": batch.name,
        "array": array,
        "partition": scheduler.partition,
        "account": scheduler.account,
        "qos": scheduler.qos,
        "constraint": scheduler.constraint,
        "reservation": scheduler.reservation,
        "exclude": scheduler.exclude,
        "nodes": size.nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": size.cpus,
        "gres": gres,
        "mem": scheduler.mem,
        "time": scheduler.time,
        "signal": f"B:USR1@{scheduler.grace_s + _NOTICE_MARGIN_S}",
        "requeue": True,
        "open-mode": "append",
        "chdir": batch.folder,
        "output": _pattern(output, batch),
    }
    lines = [
        f"--{name}" if value is True else f"--{name}={_escaped(value)}" for name, value in options.items() if value
    ]
    return [f"#SBATCH {line}" for line in (*lines, *scheduler.extra)]


def _escaped(value: object) -> str:
    text = str(value)
    return '"' + re.sub(r'(["\\])', r"\\\1", text) + '"' if _SPECIAL.search(text) else text


def _pattern(output: Path, batch: Batch) -> Path:
    """Return a path in which sbatch puts nothing but an array's index."""
    return Path(str(batch.folder).replace("%", "%%"), *output.relative_to(batch.folder).parts)


def _where(batch: Batch, runtime: Runtime) -> list[str]:
    runs = shlex.quote(str(batch.folder / "runs.txt"))
    run = shlex.quote(str(batch.folder)) if batch.runs is None else f'$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" {runs})'
    job = "$SLURM_JOB_ID" if batch.runs is None else "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
    return [
        "# The run's folder holds its spec, and all that comes of it.",
        f"run={run}",
        f"job={job}",
        f"export PYTHONPATH={shlex.quote(runtime.path)} XRUN_HOME={shlex.quote(runtime.home)}",
    ]


def _node(runtime: Runtime, verb: str) -> str:
    # -P: modules are not looked for in the working folder.
    return f'{shlex.quote(runtime.python)} -P -m runner.node {verb} "$run"'


def _srun(size: Size, scheduler: Scheduler) -> str:
    options = [
        f"--nodes={size.nodes}",
        f"--ntasks={size.nodes}",
        f"--cpus-per-task={size.cpus}",
        "--kill-on-bad-exit=1",
    ]
    return shlex.join(["srun", *options, *scheduler.srun_args])


_COMMON = """
# How the job ended is known from this file, too, where SLURM keeps no accounts.
finish() {
    echo "{\\"exit\\":$1,\\"job\\":\\"$job\\"}" > "$run/slurm/exit.new"
    mv "$run/slurm/exit.new" "$run/slurm/exit.json"
    exit "$1"
}

# USR1 comes when the time is nearly over, TERM when others need the nodes or the job is cancelled:
# the run ends after its step, with a checkpoint.
stop() {
    trap '' USR1 TERM
    signalled=yes
    [ "$1" = TERM ] || : > "$run/slurm/time-is-over"
    : > "$run/control/stop"
}
trap 'stop USR1' USR1
trap 'stop TERM' TERM
"""

_MEETING = """
# Where the nodes' processes meet: the address that SLURM itself uses, and a port that no other job has.
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
XRUN_MASTER_ADDRESS=$(scontrol -o show node "$head" | grep -oP 'NodeAddr=\\K\\S+')
XRUN_MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
export XRUN_MASTER_ADDRESS XRUN_MASTER_PORT

"""

_END = f"""
step=$!
wait "$step"
code=$?
# A signal ends this shell's waiting, not the step.
[ -z "$signalled" ] || [ "$code" -le 128 ] || {{ wait "$step"; code=$?; }}
trap '' USR1 TERM
# {GOES_ON}: stopped with a checkpoint. Preempted jobs are requeued by SLURM.
if [ "$code" = {GOES_ON} ] && [ -e "$run/slurm/time-is-over" ] && scontrol requeue "$job"; then
    exit "$code"
fi
finish "$code"
"""
