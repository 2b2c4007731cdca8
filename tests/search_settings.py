"""A space, and settings that search it: what the tests of a search share."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from runner.space import Dimension, Direction, Pruner, Sampler, SearchSettings

SPACE = (
    Dimension(key="optim.lr", kind="float", low=1e-5, high=1.0, log=True),
    Dimension(key="+model.layers", kind="int", low=1, high=8, step=1),
    Dimension(key="model.dropout", kind="float", low=0.0, high=0.5, step=0.1),
    Dimension(key="precision", kind="choice", choices=("fp32", "bf16")),
)


def settings(
    sampler: Sampler = "random",
    options: Mapping[str, Any] = MappingProxyType({}),
    pruner: Pruner = "none",
    pruner_options: Mapping[str, Any] = MappingProxyType({}),
    directions: tuple[Direction, ...] = ("minimize",),
) -> SearchSettings:
    return SearchSettings(
        sampler=sampler,
        sampler_options=options,
        pruner=pruner,
        pruner_options=pruner_options,
        directions=directions,
        seed=1,
    )
