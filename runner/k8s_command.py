"""`xrun experiment=… scheduler=k8s --dry-run`: a run as a manifest for kubectl, and what to do before it is applied."""

import secrets
import shlex
from collections.abc import Iterator, Sequence

import yaml

from runner.config import Config
from runner.errors import ConfigError
from runner.k8s import objects, places_in_claim, require_pullable
from runner.record import Conducted
from runner.source import Source
from runner.spec import RunSpec


def require_dry_run(config: Config, argv: Sequence[str], *, is_dry: bool) -> None:
    """Raise ConfigError unless a manifest can be printed, and nothing else is asked for."""
    if not is_dry:
        raise ConfigError(
            "scheduler=k8s: xrun does not submit to Kubernetes yet; it prints what kubectl takes",
            hint=f"xrun {shlex.join(argv)} --dry-run",
        )
    if config.scheduler.claim is None:
        raise ConfigError(
            "scheduler.claim: expected the name of a PersistentVolumeClaim, found nothing",
            hint=f"xrun {shlex.join(argv)} scheduler.claim=<name> --dry-run",
        )
    require_pullable(config.image.source, config.image.name)


def manifest(spec: RunSpec, conducted: Conducted, source: Source, self_test_steps: int) -> str:
    """Return the manifest of a run. Raises ConfigError."""
    content = objects(spec, conducted, nonce=secrets.token_hex(16), self_test_steps=self_test_steps)
    return written(content, notes(spec, conducted, source))


def written(content: Sequence[object], lines: Sequence[str]) -> str:
    """Return objects as YAML, below lines of comment."""
    comment = "".join(f"# {line}\n" for line in lines)
    return comment + yaml.safe_dump_all(content, sort_keys=False, width=1000, explicit_start=True)


def notes(spec: RunSpec, conducted: Conducted, source: Source) -> list[str]:
    """Return what a person is to know of a manifest, what is to be copied into the claim first of all."""
    return list(_notes(spec, conducted, source))


def _notes(spec: RunSpec, conducted: Conducted, source: Source) -> Iterator[str]:
    places, claim = places_in_claim(spec, conducted.data_recipe), conducted.scheduler.claim
    yield "not run by xrun: its form is checked against Kubernetes' own schema, but no cluster has run it."
    yield f"In the claim {claim}, before this is applied:"
    yield f"  {places.source}  is a copy of {source.folder}"
    if places.data is not None:
        yield f"  {places.data}  holds the data sets {', '.join(sorted(spec.data))}, a folder each"
    yield f"  {places.out}  is empty, or not there; the run writes it"
    yield f"  {places.control}  is empty, or not there; a file `stop` in it asks the run to stop, with a checkpoint"
    yield "What a manifest cannot say: a limit of processes (the kubelet's podPidsLimit), and that variables of the"
    yield "image and the cluster stay out. The NetworkPolicy holds where the cluster's network keeps to such."
