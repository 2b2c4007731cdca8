import shutil
from pathlib import Path

import pytest

from conf.tiny import CONF, TINY


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    """The project's own conf/ with one experiment, tiny."""
    shutil.copytree(CONF, tmp_path / "conf", ignore=shutil.ignore_patterns("experiment"))
    (tmp_path / "conf" / "experiment").mkdir()
    (tmp_path / "conf" / "experiment" / "tiny.yaml").write_text(TINY)
    return tmp_path / "conf"
