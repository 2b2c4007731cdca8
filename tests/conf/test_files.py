from pathlib import Path

import pytest

from runner.conf.files import groups, read_files
from runner.errors import ConfigError

OWN = "hydra's own settings are not read"


def refused(conf: Path) -> str:
    with pytest.raises(ConfigError) as refusal:
        read_files(conf)
    return str(refusal.value)


def test_groups_are_the_folders_of_conf_and_options_its_files(conf: Path) -> None:
    assert groups(conf) == {
        "determinism": (
            "elastic",
            "portable-v2",
            "portable-v3",
            "portable-v4",
            "repeat",
            "resume",
            "seeded",
            "strongest",
        ),
        "experiment": ("tiny",),
        "hardware": ("cpu", "h200"),
        "image": ("cpu", "pytorch-cuda"),
        "precision": ("bf16", "fp16", "fp32", "tf32"),
        "scheduler": ("k8s", "local", "slurm"),
        "sweep": ("grid", "optuna"),
        "tracking": ("off", "wandb"),
    }


def test_a_folder_without_conf_has_no_groups(tmp_path: Path) -> None:
    assert groups(tmp_path / "conf") == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n", "YAML alias *a: values are shared by ${key} instead"),
        ("a: &a [*a]\n", "YAML alias *a: values are shared by ${key} instead"),
        ("a: " + "[" * 40_000, "nested deeper than 16 levels"),
        ("a: " + "{b: " * 17 + "1" + "}" * 17, "nested deeper than 16 levels"),
        ("hydra:\n  searchpath: [pkg://evil]\n", f"{OWN}; a run's folder, log and scheduler are xrun's"),
        ("hydra:\n  job:\n    env_copy: [HOME]\n", f"{OWN}; a run's folder, log and scheduler are xrun's"),
        ("# @package hydra.job\nchdir: true\n", f"{OWN}; a run's folder, log and scheduler are xrun's"),
        ("defaults:\n  - override hydra/launcher: joblib\n", f"defaults: 'override hydra/launcher': {OWN}"),
        ("defaults:\n  - /x@hydra.run: y\n", f"defaults: '/x@hydra.run': {OWN}"),
        ("defaults: [../evil/x]\n", "defaults: '../evil/x' leads out of the folder"),
        ("defaults:\n  - tracking: ../../evil\n", "defaults: '../../evil' leads out of the folder"),
        ("defaults: [//etc/x]\n", "defaults: '//etc/x' leads out of the folder"),
    ],
)
def test_a_file_that_would_grow_run_code_or_leave_conf_is_refused(conf: Path, content: str, message: str) -> None:
    (conf / "experiment" / "evil.yaml").write_text(content)
    assert refused(conf) == f"conf/experiment/evil.yaml: {message}"


def test_hydras_own_groups_cannot_be_brought_by_a_folder(conf: Path) -> None:
    (conf / "hydra" / "launcher").mkdir(parents=True)
    (conf / "hydra" / "launcher" / "mine.yaml").write_text("a: 1\n")
    assert refused(conf) == f"conf/hydra/launcher/mine.yaml: {OWN}; a run's folder, log and scheduler are xrun's"


def test_a_huge_file_is_refused_before_it_is_parsed(conf: Path) -> None:
    (conf / "config.yaml").write_text("# " + "x" * (1 << 20))
    assert refused(conf) == "conf/config.yaml: larger than 64 KiB, the most that a config file may have"


def test_bytes_that_are_no_text_are_refused_with_their_place(conf: Path) -> None:
    (conf / "config.yaml").write_bytes(b"seed: \xff")
    assert refused(conf) == "conf/config.yaml: byte 6 is not UTF-8"
