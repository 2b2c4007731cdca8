"""What the probed operators compute on this machine: asked of a lock's own image, at its level. No run is recorded."""

import json
import os
from dataclasses import replace
from pathlib import Path

from runner import durable
from runner.container import Conduct, Places, container_request
from runner.engines.request import Engine
from runner.errors import RunFailed
from runner.hostile import opened, opened_folder
from runner.inside.leaves import are_leaves
from runner.source import Source
from runner.spec import RunSpec
from runner.terminal import clipped, printable

_FOUND = "numerics.json"
_FOUND_CAP_BYTES = 1 << 16
_SAID_CAP = 300
_TIMEOUT_S = 600
_GRACE_S = 10.0


def probe(spec: RunSpec, source: Source, engine: Engine, conduct: Conduct, folder: Path) -> dict[str, str]:
    """Return operator -> leaf, as a container of the spec's image finds them. `folder` is for its files.

    Raises what the engine raises, and RunFailed with the container's last words.
    """
    engine.require(spec.image)
    places = Places(
        store=folder,
        source=source.folder,
        spec=folder / "spec.json",
        out=folder / "out",
        control=folder / "control",
        data=None,
    )
    durable.write(places.spec, spec.canonical())
    places.out.mkdir()
    places.control.mkdir()
    request = container_request(f"numerics-{conduct.nonce[:8]}", spec, places, conduct)
    request = replace(request, argv=(spec.image.python, "-m", "runner.inside.probe"))
    container = engine.start(request, folder / "log.txt")
    try:
        outcome = container.wait(_TIMEOUT_S)
    finally:
        container.stop(_GRACE_S)
        container.remove()
    if outcome is None or outcome.exit_code != 0:
        raise RunFailed(f"the numerics probe failed: {_last_words(folder / 'log.txt')}")
    return _found(places.out)


def _last_words(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()] if log.exists() else []
    if not lines:
        return "it said nothing"
    said = next((line for line in lines if line.startswith("error: ")), lines[-1])
    return clipped(printable(said.removeprefix("error: ")), _SAID_CAP)


def _found(out: Path) -> dict[str, str]:
    try:
        with opened_folder(out) as folder, opened(folder, _FOUND, _FOUND) as (file, _):
            leaves = json.loads(os.pread(file, _FOUND_CAP_BYTES, 0))
    except (OSError, ValueError, RecursionError) as error:
        raise RunFailed(f"the numerics probe left no {_FOUND} that can be read") from error
    if not are_leaves(leaves):
        raise RunFailed(f"the numerics probe's {_FOUND} holds something else than operators and their leaves")
    return dict(leaves)
