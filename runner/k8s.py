"""A run as Kubernetes objects: an Indexed Job with a pod a node, and what its pods need. Plain values, no cluster."""

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from runner.container import SPEC, Conduct, Node, Places, container_request
from runner.engines.request import ContainerRequest, Mount
from runner.errors import ConfigError
from runner.lock import ImagePin, repository
from runner.record import Conducted
from runner.spec import RunSpec

_UNPRIVILEGED = 65532
_MASTER_PORT = 29500
_DNS_PORT = 53
_KEPT_S = 24 * 60 * 60
_INDEX = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
_JOB_LABEL = "batch.kubernetes.io/job-name"
# A pod is named after its job, and a name has at most 63 characters.
_NAME_CAP = 40
_CLAIM, _SPEC, _SHM, _TMP = "claim", "spec", "shm", "tmp"

Object = dict[str, Any]


def require_pullable(source: str, name: str) -> None:
    """Raise ConfigError unless an image comes from a registry: a cluster pulls its images."""
    if source != "registry":
        raise ConfigError(
            f"scheduler=k8s pulls images, and image {name} is in no registry: its source is a {source}",
            hint="push it first, and name it in conf/image/: source: registry, ref: <repository>@sha256:<digest>",
        )


def pulled_name(image: ImagePin) -> str:
    """Return `repository@digest`, which a registry answers with exactly this image."""
    return f"{repository(image.ref)}@{image.digest}"


def job_name(spec: RunSpec) -> str:
    """Return a run's name in the letters that Kubernetes takes."""
    experiment, _, digest = spec.run_stem.rpartition("-")
    return f"{re.sub('[^a-z0-9]+', '-', experiment)[:_NAME_CAP].strip('-')}-{digest}"


def places_in_claim(spec: RunSpec, data_recipe: str | None) -> Places:
    """Return where a run's parts are in the claim."""
    run = Path("runs", job_name(spec))
    return Places(
        store=run.parent,
        source=Path("source", spec.source.replace(":", "-")),
        spec=Path(SPEC),
        out=run / "out",
        control=run / "control",
        data=Path("data") if spec.data and data_recipe else None,
    )


def objects(spec: RunSpec, conducted: Conducted, *, nonce: str, self_test_steps: int) -> list[Object]:
    """Return what is to be applied: NetworkPolicy, Service, ConfigMap, Job. Raises ConfigError."""
    require_pullable(spec.image.source, spec.image.name)
    name, nodes = job_name(spec), conducted.nodes
    first = Node(count=nodes, number=0, master_address=f"{name}-0.{name}", master_port=_MASTER_PORT)
    conduct = Conduct(
        nonce=nonce,
        log_every_steps=conducted.tracking.log_every_steps,
        hang_timeout_s=conducted.scheduler.hang_timeout_s,
        limits=conducted.limits,
        self_test_steps=self_test_steps,
        node=first if nodes > 1 else None,
    )
    request = container_request(name, spec, places_in_claim(spec, conducted.data_recipe), conduct)
    config_map = {"immutable": True, "data": {PurePosixPath(SPEC).name: spec.canonical().decode("ascii")}}
    return [
        _object("networking.k8s.io/v1", "NetworkPolicy", name, conducted, {"spec": _network(request)}),
        _object("v1", "Service", name, conducted, {"spec": _service(name)}),
        _object("v1", "ConfigMap", name, conducted, config_map),
        _object("batch/v1", "Job", name, conducted, {"spec": _job(spec, conducted, request)}),
    ]


def _object(version: str, kind: str, name: str, conducted: Conducted, content: Mapping[str, Any]) -> Object:
    scheduler, labels = conducted.scheduler, {"app.kubernetes.io/managed-by": "xrun"}
    if kind == "Job" and scheduler.queue is not None:
        labels["kueue.x-k8s.io/queue-name"] = scheduler.queue
    namespace = {"namespace": scheduler.namespace} if scheduler.namespace else {}
    metadata = {"name": name, **namespace, "labels": labels}
    return {"apiVersion": version, "kind": kind, "metadata": metadata, **content}


def _network(request: ContainerRequest) -> Object:
    """Return what the run's pods may reach: nothing, or each other, and who tells them their addresses."""
    policy: Object = {"podSelector": _ours(request), "policyTypes": ["Ingress", "Egress"]}
    if request.network == "none":
        return policy
    names = [{"protocol": protocol, "port": _DNS_PORT} for protocol in ("UDP", "TCP")]
    ways: Object = {
        "ingress": [{"from": [{"podSelector": _ours(request)}]}],
        "egress": [{"to": [{"podSelector": _ours(request)}]}, {"ports": names}],
    }
    return policy | ways


def _ours(request: ContainerRequest) -> Object:
    return {"matchLabels": {_JOB_LABEL: request.name}}


def _service(name: str) -> Object:
    """Return the headless Service by which pod 0 has a name, even before it says that it is ready."""
    return {
        "clusterIP": "None",
        "publishNotReadyAddresses": True,
        "selector": {_JOB_LABEL: name},
        "ports": [{"name": "master", "port": _MASTER_PORT}],
    }


def _job(spec: RunSpec, conducted: Conducted, request: ContainerRequest) -> Object:
    timeout_s = conducted.scheduler.timeout_s
    return {
        "completions": conducted.nodes,
        "parallelism": conducted.nodes,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        **({"activeDeadlineSeconds": timeout_s} if timeout_s else {}),
        "ttlSecondsAfterFinished": _KEPT_S,
        "template": {"spec": _pod(spec, conducted, request)},
    }


def _pod(spec: RunSpec, conducted: Conducted, request: ContainerRequest) -> Object:
    system, _, architecture = spec.image.platform.partition("/")
    selector = {"kubernetes.io/arch": architecture.partition("/")[0], "kubernetes.io/os": system}
    if spec.hardware.gpu_model is not None:
        # As NVIDIA's GPU feature discovery spells a model.
        selector["nvidia.com/gpu.product"] = spec.hardware.gpu_model.replace(" ", "-")
    return {
        "subdomain": request.name,
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": conducted.scheduler.grace_s,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        # The pod's own first process then is the init of the run's.
        "shareProcessNamespace": True,
        "nodeSelector": selector,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _UNPRIVILEGED,
            "runAsGroup": _UNPRIVILEGED,
            "fsGroup": _UNPRIVILEGED,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(spec, conducted.nodes, request)],
        "volumes": [
            {"name": _CLAIM, "persistentVolumeClaim": {"claimName": conducted.scheduler.claim}},
            {"name": _SPEC, "configMap": {"name": request.name}},
            {"name": _SHM, "emptyDir": {"medium": "Memory", "sizeLimit": str(request.limits.shm_bytes)}},
            {"name": _TMP, "emptyDir": {"medium": "Memory", "sizeLimit": str(request.limits.tmp_bytes)}},
        ],
    }


def _container(spec: RunSpec, nodes: int, request: ContainerRequest) -> Object:
    memory, cores = {"memory": str(request.limits.memory_bytes)}, spec.hardware.threads * spec.ranks // nodes
    gpus = {"nvidia.com/gpu": str(spec.hardware.gpu_count // nodes)} if spec.hardware.device == "cuda" else {}
    return {
        "name": "run",
        "image": pulled_name(request.image),
        "command": list(request.argv),
        "workingDir": request.workdir,
        "env": _environment(spec, request),
        "resources": {"requests": {"cpu": str(cores), **memory, **gpus}, "limits": {**memory, **gpus}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "privileged": False,
            "readOnlyRootFilesystem": True,
        },
        "volumeMounts": [
            *map(_mount, request.mounts),
            {"name": _SHM, "mountPath": "/dev/shm"},  # noqa: S108, the container's own
            {"name": _TMP, "mountPath": "/tmp"},  # noqa: S108, as above
        ],
    }


def _environment(spec: RunSpec, request: ContainerRequest) -> list[Object]:
    """Return the request's variables; which node a pod is only the cluster can tell."""
    variables = dict(request.environment)
    if spec.hardware.device == "cuda":
        variables["NVIDIA_DRIVER_CAPABILITIES"] = "compute,utility"
    known: list[Object] = [{"name": name, "value": value} for name, value in sorted(variables.items())]
    number = {"name": "XRUN_NODE", "valueFrom": {"fieldRef": {"fieldPath": _INDEX}}}
    return [number if variable["name"] == "XRUN_NODE" else variable for variable in known]


def _mount(mount: Mount) -> Object:
    if mount.target == SPEC:
        return {"name": _SPEC, "mountPath": SPEC, "subPath": PurePosixPath(SPEC).name, "readOnly": True}
    return {"name": _CLAIM, "mountPath": mount.target, "subPath": str(mount.source), "readOnly": mount.read_only}
