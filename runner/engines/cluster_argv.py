"""What Pyxis and Apptainer, the container runtimes of many clusters, would be told of a request. Never run so far."""

from collections.abc import Sequence

from runner.engines.request import ContainerRequest, Mount
from runner.errors import ConfigError, ImageError
from runner.lock import ImagePin

_DOCKER_HUB = "docker.io"


def cluster_argv(runtime: str, request: ContainerRequest) -> list[str]:
    """Return the command by which a cluster's runtime would start a request on one node. Raises ImageError."""
    return (_pyxis if runtime == "pyxis" else _apptainer)(request)


def _pyxis(request: ContainerRequest) -> list[str]:
    registry, name = _reference(request.image)
    where = "" if registry == _DOCKER_HUB else f"{registry}#"
    return [
        "srun",
        "--overlap",
        "--nodes=1",
        "--ntasks=1",
        # Enroot takes digests since version 4.0.
        f"--container-image={where}{name}@{request.image.digest}",
        f"--container-mounts={','.join(_bind(mount) for mount in request.mounts)}",
        f"--container-workdir={request.workdir}",
        "--container-readonly",
        "--no-container-mount-home",
        "--no-container-entrypoint",
        *_program(request),
    ]


def _apptainer(request: ContainerRequest) -> list[str]:
    registry, name = _reference(request.image)
    binds = [word for mount in request.mounts for word in ("--bind", _bind(mount))]
    return [
        "apptainer",
        "exec",
        "--containall",
        "--no-home",
        "--net",
        "--network=none",
        *(["--nv"] if request.gpus else []),
        *binds,
        f"--pwd={request.workdir}",
        f"docker://{registry}/{name}@{request.image.digest}",
        *_program(request),
    ]


def _reference(image: ImagePin) -> tuple[str, str]:
    """Return registry and repository of an image. Raises ImageError for one that no registry has."""
    if image.source != "registry":
        raise ImageError(
            f"image {image.name} is a {image.source}'s; Pyxis and Apptainer pull from registries",
            hint="scheduler.container=embedded",
        )
    repository = image.ref.partition("@")[0]
    head, _, last = repository.rpartition("/")
    path = f"{head}/{last.partition(':')[0]}".lstrip("/")
    first, _, rest = path.partition("/")
    is_host = rest and (first == "localhost" or "." in first or ":" in first)
    return (first, rest) if is_host else (_DOCKER_HUB, path)


def _bind(mount: Mount) -> str:
    source = str(mount.source)
    if set(source) & set(":,\\"):
        raise ConfigError(f"{source} cannot be mounted by Pyxis or Apptainer: it holds ':', ',' or a backslash")
    return f"{source}:{mount.target}:{'ro' if mount.read_only else 'rw'}"


def _program(request: ContainerRequest) -> Sequence[str]:
    # The whole environment is the request's: neither the image's own nor the job's reaches the program.
    return ["env", "-i", *(f"{name}={value}" for name, value in request.environment), *request.argv]
