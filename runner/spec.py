"""RunSpec: all that decides a run's bits. Its digest names the run."""

from collections.abc import Mapping
from dataclasses import dataclass

from runner.canonical import canonical_bytes, digest_of
from runner.lock import DeterminismPin, HardwarePin, ImagePin, to_mapping
from runner.parse import Mistake, ParseError, parse

VERSION = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """Lock, overrides and source, resolved to one value. Times, hosts, paths and engines stay out."""

    version: int = VERSION
    experiment: str
    image: ImagePin
    hardware: HardwarePin
    ranks: int
    virtual_ranks: int
    """Shares of every step's samples; at least as many as ranks, which compute them."""
    determinism: DeterminismPin
    numerics: dict[str, str] | None = None
    """What the lock pins of the probed operators, operator -> leaf; open where it speaks of another level."""
    data: dict[str, dict[str, str]]
    config: dict[str, object]
    """Resolved hyperparameters, overrides applied."""
    source: str
    """Digest of the source snapshot: `experiments/` and `runner/inside/`."""

    @property
    def is_command(self) -> bool:
        """Whether the run is a program of any kind, without steps, traces and checkpoints."""
        experiment = self.config.get("experiment")
        return isinstance(experiment, Mapping) and bool(experiment.get("command"))

    def canonical(self) -> bytes:
        """Return the bytes of spec.json."""
        return canonical_bytes(to_mapping(self))

    @property
    def digest(self) -> str:
        """The digest that the run id carries. Two runs with the same one promise the same fingerprint."""
        return digest_of(self.canonical())

    @property
    def run_stem(self) -> str:
        """The run id without its number: `<experiment>-<8 hex>`."""
        return f"{self.experiment}-{self.digest.removeprefix('sha256:')[:8]}"


def from_mapping(mapping: Mapping[str, object]) -> RunSpec:
    """Build a spec from a stored spec.json. Raises ParseError."""
    # Asked first: a spec of another version has other keys, and to name those would not say why.
    if isinstance(mapping, Mapping) and (found := mapping.get("version", VERSION)) != VERSION:
        raise ParseError([Mistake(place="version", what=f"this xrun reads version {VERSION}, found {found}")])
    return parse(RunSpec, mapping)
