"""The numerics probe, each time in a process of its own: what it depends on, and what does not depend on it."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from inside.jobs import REPOSITORY, Ran, make_spec, run
from runner.inside.leaves import are_leaves, differing, digest_of_leaves, listed
from runner.levels import environment

PROBE = """
import json, random, sys, torch
from runner.inside import knobs, numerics
from runner.inside.probed import Inputs
from runner.inside.precision import tf32_settings

level, precision = sys.argv[1:]
knobs.set_up(level)
torch.manual_seed(5), random.seed(5), torch.set_grad_enabled(False)
before = [torch.get_rng_state().tolist(), random.getstate(), knobs.read_back(), torch.is_grad_enabled()]
leaves = numerics.probe(torch.device("cpu"), precision, portable=level.startswith("portable"))
after = [torch.get_rng_state().tolist(), random.getstate(), knobs.read_back(), torch.is_grad_enabled()]
inputs = Inputs(torch.device("cpu"))
made = [numerics._digest([inputs.reals("x", 999)]), numerics._digest([inputs.integers("x", 61, 999)])]
print(json.dumps({"leaves": leaves, "inputs": made, "undisturbed": before == after}))
"""


def probe(
    level: str = "repeat",
    precision: str = "fp32",
    launcher: Sequence[str] = (),
    threads: int = 2,
    variables: Mapping[str, str] = MappingProxyType({}),
) -> "dict[str, Any]":
    settings = {"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY), "PYTHONWARNINGS": "ignore"}
    settings |= environment(level, threads, precision) | dict(variables)
    argv = [*launcher, sys.executable, "-c", PROBE, level, precision]
    return dict(json.loads(subprocess.run(argv, env=settings, capture_output=True, text=True, check=True).stdout))


@pytest.fixture(scope="module")
def here() -> "dict[str, Any]":
    return probe()


def test_two_processes_find_the_same(here: "dict[str, Any]") -> None:
    assert probe() == here


def test_every_operator_that_this_torch_has_gets_a_leaf(here: "dict[str, Any]") -> None:
    assert are_leaves(here["leaves"])
    assert len(here["leaves"]) == 63
    assert len(set(here["leaves"].values())) == 63


def test_the_root_is_over_all_leaves_and_not_over_their_order() -> None:
    leaves = {"exp": "0" * 16, "mm": "1" * 16}
    assert digest_of_leaves(leaves) == digest_of_leaves(dict(reversed(leaves.items())))
    assert digest_of_leaves(leaves) != digest_of_leaves({**leaves, "mm": "2" * 16})


def test_generators_and_settings_are_left_as_they_were(here: "dict[str, Any]") -> None:
    assert here["undisturbed"] is True


@pytest.mark.parametrize(
    ("variable", "value", "operator"),
    [
        ("ATEN_CPU_CAPABILITY", "default", "softmax"),
        ("ONEDNN_MAX_CPU_ISA", "SSE41", "conv 3x3"),
        ("MKL_CBWR", "COMPATIBLE", "mm large"),
    ],
)
def test_a_capped_library_computes_other_bits_from_the_same_inputs(
    here: "dict[str, Any]", variable: str, value: str, operator: str
) -> None:
    capped = probe(variables={variable: value})
    others = differing(here["leaves"], capped["leaves"])
    assert operator in others
    assert "rand" not in others
    assert capped["inputs"] == here["inputs"]


def test_threads_are_part_of_what_is_probed(here: "dict[str, Any]") -> None:
    assert differing(here["leaves"], probe(threads=1)["leaves"])


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_probed_beside_float32(here: "dict[str, Any]", precision: str) -> None:
    both, again = (probe(precision=precision)["leaves"] for _ in range(2))
    assert both == again
    assert here["leaves"].items() <= both.items()
    halves = {name for name in both if name.endswith(f" {precision}")}
    assert {f"mm {precision}", f"conv 3x3 backward {precision}", f"attention {precision}"} <= halves
    assert len(halves) == 23


@pytest.mark.qemu
@pytest.mark.parametrize("cpu", ["Haswell", "EPYC"])
def test_at_a_portable_level_every_operator_is_the_same_on_another_cpu(cpu: str) -> None:
    qemu = shutil.which("qemu-x86_64")
    if qemu is None and os.environ.get("CI") != "true":
        pytest.skip("no qemu-x86_64: apt-get install qemu-user")
    assert qemu is not None, "CI installs qemu-user"
    assert probe("portable-v3", launcher=(qemu, "-cpu", cpu)) == probe("portable-v3")


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return run(tmp_path_factory.mktemp("ran"), make_spec())


def leaves_of(ran: Ran) -> "dict[str, str]":
    with (ran.out / "trace-rank0.bin").open("rb") as trace:
        return dict(json.loads(trace.readline())["numerics"])


def test_a_run_tells_which_of_the_operators_its_training_uses(tmp_path: Path, ran: Ran) -> None:
    [told] = [event for event in ran.events if event["kind"] == "operators"]
    of_linear = {"addmm", "linear", "mm", "mm large", "mm odd", "mm transposed"}
    of_others = {"adamw fused", "add scaled", "batch_norm", "cross_entropy", "div", "dropout", "log_softmax", "sgd"}
    assert (told["step"], set(told["names"])) == (1, of_linear | of_others | {"sum"})
    half = run(tmp_path, make_spec(config__precision="bf16"))
    [told] = [event for event in half.events if event["kind"] == "operators"]
    assert set(told["names"]) == {f"{name} bf16" for name in of_linear} | of_others | {"sum"}


WITHOUT = """
import sys
from runner.inside import session
if sys.argv[1:] == ["unseen"]:
    session.OperatorsUsed.__enter__ = lambda self: self
    session.OperatorsUsed.__exit__ = lambda self, *error: None
from runner.inside.__main__ import main
sys.exit(main())
"""

CHARGPT = {
    "config__experiment": {"name": "chargpt", "module": "chargpt", "command": []},
    "config__model": {"layers": 2, "heads": 4, "width": 64, "context": 32, "dropout": 0.1},
    "config__optim": {"lr": 0.003, "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.99},
    "config__data": {"text": "words", "test_windows": 8, "test_batch_size": 4},
    "config__training__steps": 2,
    "hardware__threads": 2,
}


@pytest.mark.parametrize(
    "changes",
    [{}, {"config__precision": "bf16"}, {"config__precision": "fp16", "config__optim__fused": False}, CHARGPT],
    ids=["fp32", "bf16", "fp16, not fused", "chargpt"],
)
def test_looking_at_the_operators_of_a_step_changes_no_bit(tmp_path: Path, changes: "dict[str, object]") -> None:
    (tmp_path / "data" / "words").mkdir(parents=True)
    text = " ".join(f"{number * number % 997}" for number in range(2000))
    (tmp_path / "data" / "words" / "words.txt").write_text(text)
    spec = make_spec(**changes)
    seen, unseen = (run(tmp_path, spec, name=name, program=["-c", WITHOUT, name]) for name in ("seen", "unseen"))
    told = [[event["names"] for event in ran.events if event["kind"] == "operators"] for ran in (seen, unseen)]
    assert told[0] != told[1] == [[]]
    assert seen.done["fingerprint"] == unseen.done["fingerprint"]
    assert (seen.out / "trace-rank0.bin").read_bytes() == (unseen.out / "trace-rank0.bin").read_bytes()


def test_a_machine_that_computes_as_the_lock_pins_is_accepted(tmp_path: Path, ran: Ran) -> None:
    assert run(tmp_path, make_spec(numerics=leaves_of(ran))).done["fingerprint"] == ran.done["fingerprint"]


def test_a_machine_that_computes_other_bits_than_the_lock_pins_is_refused(tmp_path: Path, ran: Ran) -> None:
    spec = make_spec(numerics=leaves_of(ran))
    capped = {"MKL_CBWR": "COMPATIBLE"}
    refused = run(tmp_path, spec, environment=capped)
    assert refused.exit_code == 2
    assert re.fullmatch(
        r"error: this machine computes other bits than the lock pins: \d+ of the \d+ probed operators that it calls: "
        r".*addmm, .+\n\n"
        r"hint: xrun lock experiment=tiny --upgrade\n",
        refused.error(),
    )
    assert not [event for event in refused.events if event["kind"] == "step"]
    allowed = run(tmp_path, spec, name="allowed", environment={**capped, "XRUN_ALLOW_NUMERICS": "1"})
    assert allowed.done["steps"] == 6


def test_at_a_portable_level_other_bits_are_a_bug(tmp_path: Path) -> None:
    first = run(tmp_path, make_spec(determinism__level="portable-v3"), name="first")
    leaves = leaves_of(first)
    assert not {"sqrt", "adamw"} & set(leaves)
    used = next(event["names"] for event in first.events if event["kind"] == "operators")
    spec = make_spec(determinism__level="portable-v3", numerics={**leaves, "addmm": "0" * 16, "mv": "0" * 16})
    assert run(tmp_path, spec).error() == (
        f"error: this machine computes other bits than the lock pins: 1 of the {len(used)} probed operators that it "
        "calls: addmm; level portable-v3 promises the same on every CPU, so this is a bug: please report it\n"
    )


def test_only_operators_that_are_used_count_and_a_missing_one_differs() -> None:
    past, here = {"exp": "0" * 16, "mm": "0" * 16, "mv": "0" * 16}, {"exp": "0" * 16, "mm": "1" * 16}
    assert differing(past, here) == ["mm", "mv"]
    assert differing(past, here, {"exp", "mv"}) == ["mv"]
    assert listed(["a", "b"]) == "a, b"
    assert listed(list("abcdefgh")) == "a, b, c, d, e, f and 2 more"
