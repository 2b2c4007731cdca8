"""What a person asks for: the config that Hydra composes from `conf/` and the command line, typed."""

from dataclasses import dataclass
from typing import Literal

from runner.parse import Scalar, plain
from runner.space import Direction, Pruner, Sampler

# A run of as many steps is tested before it begins.
_LONG_STEPS = 1_000
_SELF_TEST_STEPS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """What is run: a module of `experiments/`, or any command."""

    name: str
    module: str | None = None
    """Module of `experiments/` with the functions that the loop calls; None for a command."""
    command: tuple[str, ...] = ()
    """argv of any program; its declared outputs are pinned and compared instead of tensors."""
    outputs: tuple[str, ...] = ()
    """Files under /out that a command must have written when it ends."""
    metrics: str | None = None
    """File under /out to which a command appends one JSON object of metrics a line."""
    data: tuple[str, ...] = ()
    """Data sets the run reads, each a folder /data/<name> whose files are pinned by digest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How long and how often."""

    steps: int
    """Optimizer updates."""
    batch_size: int
    """Samples per step, over all ranks and micro-batches."""
    micro_batches: int
    """Micro-batches per step and rank; gradients accumulate over them."""
    clip_norm: float | None
    """Largest norm of the whole gradient; None does not clip."""
    eval_every_steps: int
    """0 evaluates at the end only."""
    checkpoint_every_steps: int
    """0 writes a checkpoint at the end only."""
    checkpoints_kept: int
    """The newest ones; 0 keeps all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How the learning rate moves: linear warm-up, then constant or half a cosine."""

    kind: Literal["constant", "cosine"]
    warmup_steps: int
    final_scale: float
    """Share of the learning rate that is left at the last step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageChoice:
    """Which image: a recipe of `images/`, a registry's image, or an OCI archive."""

    name: str
    source: Literal["recipe", "registry", "archive"]
    ref: str
    """recipe: folder under `images/`; registry: repository:tag@sha256:…; archive: path."""
    platform: str
    python: str
    """Name of the interpreter inside the image."""
    data_recipe: str | None = None
    """Recipe whose data sets are mounted at /data; None where the image holds its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """What the run needs of a machine. The first block is pinned by the lock; the second is the run's own."""

    name: str
    device: Literal["cpu", "cuda"]
    arch_level: str | None = None
    """x86-64 level that the CPU must reach, such as x86-64-v3."""
    threads: int = 1
    """Threads of each rank. They decide bits, so never 'all cores'."""
    gpu_model: str | None = None
    gpu_count: int = 0
    """Over all nodes."""
    gpu_memory_gib: int | None = None
    driver_min: str | None = None
    """Oldest NVIDIA driver that can run the image's CUDA."""

    ranks: int = 1
    """Processes of the run, over all nodes; each has its own replica of the model (DDP)."""
    nodes: int = 1
    """Machines that share the ranks evenly. Neither a lock nor a run's spec knows of it: it may decide no bits."""
    memory_gib: float = 16.0
    """Of each node, as are the next two."""
    shm_gib: float = 8.0
    """Size of /dev/shm that is asked for; a machine with less memory gives what it has."""
    pids: int = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracking:
    """Where metrics go beside the run's own folder."""

    wandb: Literal["auto", "online", "offline", "off"]
    """auto: online where a key is set, else offline."""
    project: str
    entity: str | None
    tags: tuple[str, ...]
    group: str | None
    log_every_steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheduler:
    """Where runs are placed: on this machine, or on a cluster, in whose words the second and third block are."""

    kind: Literal["local", "slurm", "k8s"]
    """k8s: a manifest for `--dry-run` to print; xrun does not submit it."""
    timeout_s: int
    """A run that takes longer is stopped; 0 never stops it."""
    hang_timeout_s: int
    """A rank that finishes no step for this long is given up, with the place where it hangs."""
    grace_s: int = 60
    """After Ctrl-C or SIGTERM, or before SLURM's time is over: time to finish the step and write a checkpoint."""
    slots: int | None = None
    """CPU slots of this machine, one a thread of a run; None: as many as CPUs that xrun may use."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gres: str | None = None
    """Of each node; None: gpu:<GPUs of the hardware group>."""
    time: str | None = None
    """Of one attempt, as SLURM writes it: '4:00:00'."""
    mem: str | int | None = None
    """Of each node, as SLURM writes it: 64G, or a number of MiB."""
    exclude: str | None = None
    reservation: str | None = None
    array_parallelism: int = 0
    """Jobs of an array that run at once; 0: as many as there is room for."""
    setup: tuple[str, ...] = ()
    """Lines of shell that run on each job's first node before anything else, such as `module load cuda`."""
    srun_args: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    """Any other options of sbatch, such as --mail-type=END."""
    max_requeues: int = 20
    """A run that was requeued this often, by the time limit or by SLURM, ends with its checkpoint."""
    container: Literal["embedded", "docker", "podman", "pyxis", "apptainer", "host"] | None = None
    """What executes the image on the nodes; None: what `engine` says, where `auto` is embedded, or docker with GPUs."""

    namespace: str | None = None
    """Of Kubernetes; None: the one that kubectl is set to."""
    queue: str | None = None
    """Kueue's queue in that namespace; None: the job starts as soon as it is applied."""
    claim: str | None = None
    """PersistentVolumeClaim with the run's source and data, and room for its `out`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """How the trials of `xrun -m` are picked and judged. None of it decides what a trial computes."""

    kind: Literal["grid", "optuna"]
    metrics: tuple[str, ...]
    """Final metrics by which trials are compared, …"""
    directions: tuple[Direction, ...]
    """… and which way each is better."""
    jobs: int | None
    """Trials side by side at most; None: as many as the machine's slots allow."""
    retries: int
    """How often a trial that failed is run again."""
    trials: int
    """optuna: trials in all; a grid has as many as its words say."""
    sampler: Sampler
    sampler_options: dict[str, Scalar]
    pruner: Pruner
    """Ends trials that do worse than others did at the same step, by the first metric; `none` ends none."""
    pruner_options: dict[str, Scalar]
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """Arithmetic of the forward and backward pass; weights and optimizer stay in float32."""

    name: Literal["fp32", "tf32", "bf16", "fp16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Determinism:
    """Which bits are promised. `strongest` picks the strongest level that precision and hardware allow."""

    level: Literal["strongest", "seeded", "repeat", "resume", "elastic", "portable-v2", "portable-v3", "portable-v4"]
    virtual_ranks: int | None = None
    """Shares into which every step's samples are cut, however many ranks compute them; None: hardware.ranks."""
    self_test: Literal["auto", "on", "off"] = "auto"
    """Whether the first steps are computed again in fresh processes before a run; auto: before a long one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything that was asked for, before anything is pinned."""

    experiment: Experiment
    seed: int
    engine: Literal["auto", "docker", "embedded", "host"]
    model: dict[str, Scalar]
    """The experiment's own hyperparameters: of its model, …"""
    optim: dict[str, Scalar]
    """… of its optimizer (`lr` is the one that the schedule scales), …"""
    data: dict[str, Scalar]
    """… and of its batches."""
    training: Training
    schedule: Schedule
    image: ImageChoice
    hardware: Hardware
    precision: Precision
    determinism: Determinism
    tracking: Tracking
    scheduler: Scheduler
    sweep: Sweep


def virtual_ranks(config: Config) -> int:
    """Return how many shares the samples of each step are cut into."""
    asked = config.determinism.virtual_ranks
    return config.hardware.ranks if asked is None else asked


def self_test_steps(config: Config) -> int:
    """Return how many steps a run's self-test computes; 0 for none. It decides no bits."""
    asked, is_long = config.determinism.self_test, config.training.steps >= _LONG_STEPS
    is_due = asked == "on" or (asked == "auto" and is_long)
    return _SELF_TEST_STEPS if is_due and not config.experiment.command else 0


def hyperparameters(config: Config) -> dict[str, object]:
    """Return the part of a config that decides what is trained, as plain mappings; keys that are None stay out."""
    groups = {
        name: plain(getattr(config, name)) for name in ("experiment", "model", "optim", "data", "training", "schedule")
    }
    tree: dict[str, object] = {
        name: {key: value for key, value in group.items() if value is not None} for name, group in groups.items()
    }
    return tree | {"seed": config.seed, "precision": config.precision.name}
