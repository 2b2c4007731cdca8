import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from search_settings import SPACE, settings

from runner.errors import ConfigError
from runner.search import Study
from runner.space import Dimension, Sampler, SearchSettings


def refused(asked: SearchSettings, folder: Path, space: Sequence[Dimension] = SPACE) -> str:
    with pytest.raises(ConfigError) as refusal:
        Study(folder, space, asked, "s")
    assert not (folder / "study.log").exists()
    return str(refusal.value)


TPE_HAS = "options: constant_liar, group, multivariate, n_ei_candidates, n_startup_trials"
REFUSED = [
    (
        settings("tpe", {"n_startup_trails": 3, "constant_liar": 1, "gamma": "x"}),
        (
            f"sweep.sampler_options.n_startup_trails: no option of tpe; did you mean n_startup_trials? {TPE_HAS}\n"
            "sweep.sampler_options.constant_liar: expected bool, found int 1\n"
            f"sweep.sampler_options.gamma: no option of tpe; {TPE_HAS}"
        ),
    ),
    (settings("random", {"popsize": 3}), "sweep.sampler_options.popsize: no option of random; it has none"),
    (settings("random", {"seed": 3}), "sweep.sampler_options.seed: no option of random; it has none"),
    (
        settings("nsga2", {"population_size": 1}),
        "sweep.sampler_options: `population_size` must be greater than or equal to 2.",
    ),
    (settings(pruner="percentile"), "sweep.pruner_options.percentile: missing"),
    (
        settings(pruner="percentile", pruner_options={"percentile": "many"}),
        "sweep.pruner_options.percentile: expected float, found str 'many'",
    ),
    (settings(pruner="threshold"), "sweep.pruner_options: Either lower or upper must be specified."),
    (
        settings(pruner="patient", pruner_options={"patience": 1, "wrapped_pruner": "patient"}),
        (
            "sweep.pruner_options.wrapped_pruner: expected one of none, median, percentile, hyperband, "
            "successive-halving, threshold, found 'patient'"
        ),
    ),
    (
        settings(pruner="median", directions=("minimize", "minimize")),
        "pruner median compares trials by one objective, found 2\n\nhint: xrun -m sweep=optuna sweep.pruner=none",
    ),
    (
        settings("cmaes", directions=("minimize", "minimize")),
        "sampler cmaes knows one objective, found 2\n\nhint: xrun -m sweep=optuna sweep.sampler=nsga2",
    ),
    (
        settings("bruteforce"),
        (
            "sampler bruteforce goes through all values, and those of optim.lr cannot be counted"
            "\n\nhint: xrun -m sweep=optuna sweep.sampler=bruteforce 'optim.lr=range(1,9,2)'"
        ),
    ),
]


@pytest.mark.parametrize(("asked", "message"), REFUSED)
def test_settings_that_no_search_can_have_are_refused(asked: SearchSettings, message: str, tmp_path: Path) -> None:
    assert refused(asked, tmp_path) == message


def test_a_search_of_nothing_is_refused(tmp_path: Path) -> None:
    assert refused(settings(), tmp_path, ()) == (
        "a search needs a key to vary\n\nhint: xrun -m sweep=optuna 'optim.lr=interval(1e-4,1e-1)'"
    )


@pytest.mark.parametrize(
    ("package", "sampler", "message"),
    [
        ("optuna", "tpe", "sweep=optuna needs the package optuna\n\nhint: pip install 'optuna>=4.9,<6'"),
        ("cmaes", "cmaes", "sampler cmaes needs what is not installed: cmaes\n\nhint: pip install cmaes"),
        ("scipy", "qmc", "sampler qmc needs what is not installed: scipy\n\nhint: pip install scipy"),
    ],
)
def test_a_package_that_is_missing_is_named_with_the_command_that_installs_it(
    package: str, sampler: Sampler, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # as Python itself says that there is none
    assert refused(settings(sampler), tmp_path) == message
