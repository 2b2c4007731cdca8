"""Another environment: refused where it is not as pinned; where it is pinned otherwise, found by its bits."""

from pathlib import Path

import pytest

from inside.surroundings import OTHER, STRAY, expected_refusal, is_as_expected, refusal, train, verdict


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("surroundings")


@pytest.fixture(scope="module")
def past(folder: Path) -> Path:
    return train(folder, "past", {})


@pytest.mark.parametrize("name", STRAY)
def test_a_setting_that_is_not_as_pinned_is_refused(tmp_path: Path, name: str) -> None:
    assert refusal(tmp_path, name) == expected_refusal(name)


@pytest.mark.parametrize("name", OTHER)
def test_a_setting_that_is_pinned_otherwise_is_found_by_its_bits(folder: Path, past: Path, name: str) -> None:
    said = verdict(past, train(folder, name, OTHER[name].changes))
    assert is_as_expected(name, said), said


def test_the_same_settings_give_the_same_bits(folder: Path, past: Path) -> None:
    assert verdict(past, train(folder, "again", {})) is None
