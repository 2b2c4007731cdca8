import pytest

from runner.conf.overrides import read_overrides
from runner.errors import ConfigError

GROUPS = {"experiment": ("tiny",), "precision": ("bf16", "fp32")}
OWN = "hydra's own settings are not read"


def refused(*words: str) -> str:
    with pytest.raises(ConfigError) as refusal:
        read_overrides(words, GROUPS)
    return str(refusal.value)


def test_words_are_read_by_hydras_grammar() -> None:
    words = read_overrides(["experiment=tiny", "+a.b=[1,'x',{c: 2.5}]", "~d", "++e=null"], GROUPS)
    assert [(word.key, word.kind, word.value, word.is_group) for word in words] == [
        ("experiment", "set", "tiny", True),
        ("a.b", "add", [1, "x", {"c": 2.5}], False),
        ("d", "delete", None, False),
        ("e", "force", None, False),
    ]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("optim.lr=[1,2", "cannot read on from the mark:\n  optim.lr=[1,2\n               ^"),
        ("a b=1", "cannot read on from the mark:\n  a b=1\n   ^"),
        ("optim.lr==1", "cannot read on from the mark:\n  optim.lr==1\n           ^"),
        ("x=é", "cannot read on from the mark:\n  x=é\n    ^"),
        ('x="abc', 'cannot read on from the mark:\n  x="abc\n    ^'),
        ("=1", "'=1': no key before the ="),
        ("", "'': expected key=value"),
        ("bf16", "'bf16': expected key=value; did you mean precision=bf16?\n\nhint: xrun precision=bf16"),
        ("seed=int(abc)", "seed=int(abc): invalid literal for int() with base 10: 'abc'"),
        ("a=" + "9" * 5000, f"a={'9' * 38}…: longer than 4096 characters or nested deeper than 16 levels"),
        ("a=" + "[" * 40, f"a={'[' * 38}…: longer than 4096 characters or nested deeper than 16 levels"),
        (
            "precision=bf15",
            "unknown precision 'bf15'; did you mean bf16? conf/precision/ has bf16, fp32\n\nhint: xrun precision=bf16",
        ),
        (
            "precision=[bf16]",
            (
                "unknown precision ['bf16']; did you mean bf16? conf/precision/ has bf16, fp32"
                "\n\nhint: xrun precision=bf16"
            ),
        ),
        ("precision=../x", "unknown precision '../x'; conf/precision/ has bf16, fp32"),
        ("~precision", "~precision: every run has one of conf/precision/: bf16, fp32"),
        (
            "precision/x=1",
            "precision/x: unknown group; groups are experiment, precision; did you mean precision?",
        ),
        ("a@b=c", "a: unknown group; groups are experiment, precision"),
        ("hydra/launcher=joblib", f"hydra/launcher: {OWN}; where runs are placed is said by scheduler=local|slurm"),
        (
            "hydra/sweeper=optuna",
            f"hydra/sweeper: {OWN}; how trials are picked is said by `xrun -m … sweep=grid|optuna`",
        ),
        (
            "hydra.sweeper.n_jobs=3",
            (
                f"hydra.sweeper.n_jobs: {OWN}; how trials are picked is said by `xrun -m … sweep=grid|optuna`, "
                "sweep.trials and the like"
            ),
        ),
        ("+hydra.searchpath=[pkg://x]", f"hydra.searchpath: {OWN}; config files are read from conf/ alone"),
        ("hydra.run.dir=/tmp/x", f"hydra.run.dir: {OWN}; a run's folder is runs/<run-id>/"),
        (
            "hydra.job.env_set.A=1",
            f"hydra.job.env_set.A: {OWN}; a run's environment and working folder are its container's",
        ),
        ("hydra.verbose=true", f"hydra.verbose: {OWN}; xrun runs without them"),
        ("~hydra", f"hydra: {OWN}; xrun runs without them"),
        ("lr=1,2", "lr=1,2: one run takes one value; a list is written 'lr=[1,2]'\n\nhint: xrun -m lr=1,2"),
        (
            "experiment=tiny,tiny",
            "experiment=tiny,tiny: one run takes one value\n\nhint: xrun -m experiment=tiny,tiny",
        ),
        ("seed=range(5)", "seed=range(5): one run takes one value\n\nhint: xrun -m 'seed=range(5)'"),
        ("experiment=glob(*)", "experiment=glob(*): one run takes one value\n\nhint: xrun -m 'experiment=glob(*)'"),
    ],
)
def test_a_word_that_one_run_cannot_take_is_refused(word: str, message: str) -> None:
    assert refused(word) == message


def test_every_wrong_word_is_named_at_once() -> None:
    assert refused("a b=1", "precision=bf15", "hydra.mode=MULTIRUN") == (
        "cannot read on from the mark:\n  a b=1\n   ^\n"
        "unknown precision 'bf15'; did you mean bf16? conf/precision/ has bf16, fp32\n"
        f"hydra.mode: {OWN}; several runs are started by `xrun -m`"
    )
