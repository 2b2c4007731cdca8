import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from images.mirror import RECIPE, Mirror, silent, standard_mirror
from runner.images import downloads
from runner.images.build import resolve_pins
from runner.images.recipe import Pins


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mirror:
    """A mirror of its own for each test, which this machine's apt and pip are pointed at."""
    made = standard_mirror(tmp_path / "mirror")
    for key, value in made.environment.items():
        monkeypatch.setenv(key, value)
    return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """A home whose downloads hold all that the pins name."""

    home: Path
    pins: Pins


@pytest.fixture(scope="session")
def resolved(tmp_path_factory: pytest.TempPathFactory) -> Ready:
    """Pins of the standard mirror, resolved once."""
    home = tmp_path_factory.mktemp("resolved")
    with pytest.MonkeyPatch.context() as patch:
        mirror = standard_mirror(home / "mirror")
        for key, value in mirror.environment.items():
            patch.setenv(key, value)
        pins = resolve_pins(RECIPE, None, home, silent)
        for pin in (*pins.packages, *pins.data):
            shutil.copyfile(
                mirror.folder / "debs" / f"{pin.name}_{pin.version}_{pin.architecture}.deb",
                downloads.place(home, pin.sha256),
            )
    return Ready(home=home, pins=pins)


@pytest.fixture
def ready(resolved: Ready, tmp_path: Path) -> Ready:
    """A home of its own for each test that needs no mirror."""
    shutil.copytree(resolved.home / "downloads", tmp_path / "home" / "downloads")
    return Ready(home=tmp_path / "home", pins=resolved.pins)
