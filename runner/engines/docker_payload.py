"""What a Docker daemon is told of a container request, and what its answers mean. Plain data, no daemon."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

from runner.engines.request import ContainerRequest, Limits, Mount, Outcome, ended

UNPRIVILEGED = 65532

_NEVER = "0001-01-01T00:00:00Z"
_LOST = 255
_COVER_BYTES = 4096
_OWN_TMPFS = "/tmp"  # noqa: S108, the container's own
# Podman's service accepts what it then ignores; so each of these is read back.
_READ_BACK = (
    "CapDrop",
    "DeviceRequests",
    "Init",
    "IpcMode",
    "Memory",
    "NetworkMode",
    "PidsLimit",
    "Privileged",
    "ReadonlyRootfs",
    "SecurityOpt",
    "ShmSize",
)


def container_payload(
    request: ContainerRequest, limits: Limits, image: Mapping[str, Any], *, user: tuple[int, int]
) -> dict[str, Any]:
    """Return the body of `POST /containers/create`. `image` is the daemon's description of the verified image."""
    config = image.get("Config") or {}
    return {
        "Image": image["Id"],
        "Entrypoint": [],
        "Cmd": list(request.argv),
        "User": f"{user[0]}:{user[1]}",
        "WorkingDir": request.workdir,
        "Env": _environment(request, config.get("Env") or ()),
        "Hostname": "localhost",
        "Healthcheck": {"Test": ["NONE"]},
        "StopSignal": "SIGTERM",
        "Labels": labels(request.name, request.store),
        "HostConfig": _host_config(request, limits, user, tuple(config.get("Volumes") or ())),
    }


def labels(run_id: str, store: str) -> dict[str, str]:
    """Return what tells the container of a run from all others: two stores may hold runs of one id."""
    return {"xrun.run": run_id, "xrun.store": store}


def container_name(request: ContainerRequest) -> str:
    """Return the container's name in the daemon: the run's id, made unique among all stores."""
    if not request.store:
        return request.name
    return f"{request.name}.{hashlib.sha256(os.fsencode(request.store)).hexdigest()[:8]}"


def _environment(request: ContainerRequest, image_environment: Sequence[str]) -> list[str]:
    """Return the request's variables; then, without a value, those that it does not name: the daemon drops these."""
    wanted = dict(request.environment) | {"PWD": request.workdir}  # PWD, for bubblewrap sets it too
    others = {variable.partition("=")[0] for variable in image_environment} | {"HOSTNAME", "PATH"}
    return [f"{name}={value}" for name, value in sorted(wanted.items())] + sorted(others - set(wanted))


def _host_config(
    request: ContainerRequest, limits: Limits, user: tuple[int, int], volumes: Sequence[str]
) -> dict[str, Any]:
    targets = {mount.target for mount in request.mounts}
    return {
        "AutoRemove": False,  # a container that outlives xrun keeps its result
        "CapDrop": ["ALL"],
        "DeviceRequests": [_gpus(request.gpus)] if request.gpus else [],
        "Init": True,
        "IpcMode": "private",
        "LogConfig": {"Type": "json-file", "Config": {"max-size": "64m", "max-file": "2"}},
        "Memory": limits.memory_bytes,
        "MemorySwap": limits.memory_bytes,
        "Mounts": [
            *map(_bind, request.mounts),
            *map(_cover, sorted(set(volumes) - targets - {_OWN_TMPFS})),
        ],
        "NetworkMode": request.network,
        "PidsLimit": limits.pids,
        "Privileged": False,
        "ReadonlyRootfs": True,
        "RestartPolicy": {"Name": "no"},
        "SecurityOpt": ["no-new-privileges"],
        "ShmSize": limits.shm_bytes,
        "Tmpfs": {_OWN_TMPFS: _tmpfs_options(limits.tmp_bytes, user)},
        "Ulimits": [{"Name": "core", "Soft": 0, "Hard": 0}],
    }


def _gpus(uuids: tuple[str, ...]) -> dict[str, Any]:
    return {"Driver": "", "Count": 0, "DeviceIDs": list(uuids), "Capabilities": [["gpu"]], "Options": {}}


def _bind(mount: Mount) -> dict[str, Any]:
    bind = {"Type": "bind", "Source": str(mount.source), "Target": mount.target, "ReadOnly": mount.read_only}
    # A mount below a read-only one would stay writable.
    return bind | {"BindOptions": {"NonRecursive": True}} if mount.read_only else bind


def _tmpfs_options(size_bytes: int, user: tuple[int, int]) -> str:
    # The user's own, for runc gives it the mode of the image's folder there, which may be anything.
    return f"rw,nosuid,nodev,noexec,size={size_bytes},mode=1777,uid={user[0]},gid={user[1]}"


def _cover(volume: str) -> dict[str, Any]:
    """Return an empty read-only place over an image's VOLUME, which is writable otherwise, whatever else is set."""
    return {"Type": "tmpfs", "Target": volume, "ReadOnly": True, "TmpfsOptions": {"SizeBytes": _COVER_BYTES}}


def differences(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Return what a created container has otherwise than its payload says. `found` is its inspection."""
    host_wanted, host_found = wanted["HostConfig"], found.get("HostConfig") or {}
    config = found.get("Config") or {}
    pairs = [(key, host_wanted[key], host_found.get(key)) for key in _READ_BACK]
    pairs += [(key, wanted[key], config.get(key)) for key in ("Cmd", "Entrypoint", "User")]
    pairs.append(("Env", [item for item in wanted["Env"] if "=" in item], _set_variables(config.get("Env") or ())))
    return [f"{key} is {is_!r}, not {asked!r}" for key, asked, is_ in pairs if (asked or None) != (is_ or None)]


def _set_variables(environment: Sequence[str]) -> list[str]:
    return sorted(item for item in environment if "=" in item)


def outcome_of(state: Mapping[str, Any]) -> Outcome | None:
    """Return how a container ended by its inspected `State`, or None while it has not.

    Exit code 0 is also what a container shows that has not run yet, so the status and the end's time decide.
    """
    if state.get("Status") not in {"exited", "dead"} or state.get("FinishedAt", _NEVER) == _NEVER:
        return None
    code = int(state.get("ExitCode", _LOST))
    if state.get("OOMKilled"):
        # Also with exit code 0: a child was killed, and its parent did not mind.
        return Outcome(kind="out-of-memory", exit_code=code, detail="killed at the container's memory limit")
    if state["Status"] == "dead":
        return Outcome(kind="lost", exit_code=code, detail="the daemon could not clean up after the container")
    return ended(code)
