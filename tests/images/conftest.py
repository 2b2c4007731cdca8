from pathlib import Path

import pytest

from images.mirror import Mirror, standard_mirror


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mirror:
    """A mirror of its own for each test, which this machine's apt and pip are pointed at."""
    made = standard_mirror(tmp_path / "mirror")
    for key, value in made.environment.items():
        monkeypatch.setenv(key, value)
    return made
