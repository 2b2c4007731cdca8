"""The operator log: what it holds of a real step, that it changes no bits, and what is read out of two of them."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

from inside.jobs import Ran, make_spec, run
from runner.inside.operator_log import LogError, Operator, Parting, first_operator, in_common, read

STEP = "3"


def logged(ran: Ran, process: int = 0) -> list[Operator]:
    with (ran.out / f"operators-rank{process}.jsonl").open("rb") as file:
        return read(file)


@pytest.mark.parametrize(
    "changes",
    [
        {"config__training__clip_norm": 1.0, "determinism__level": "portable-v3"},
        {"config__precision": "fp16", "determinism__level": "resume"},
        {"config__precision": "bf16", "ranks": 2},
        {"ranks": 2, "virtual_ranks": 4, "determinism__level": "elastic"},
    ],
    ids=["portable-v3", "fp16", "bf16 on 2 ranks", "elastic on 2 ranks"],
)
def test_a_log_changes_no_bits_and_is_the_same_in_every_process(tmp_path: Path, changes: dict[str, Any]) -> None:
    spec = make_spec(**changes)
    plain = run(tmp_path, spec, name="plain")
    first, second = (run(tmp_path, spec, name=name, environment={"XRUN_OPERATORS_STEP": STEP}) for name in ("a", "b"))
    assert first.done["fingerprint"] == second.done["fingerprint"] == plain.done["fingerprint"]
    for process in range(spec["ranks"]):
        assert len(logged(first, process)) > 40
        assert logged(first, process) == logged(second, process)
    assert not (plain.out / "operators-rank0.jsonl").exists()


def test_an_operator_is_named_with_its_part_of_the_model_in_both_passes(tmp_path: Path) -> None:
    ran = run(tmp_path, make_spec(config__model={"plain": True}), environment={"XRUN_OPERATORS_STEP": STEP})
    assert [operator.place for operator in logged(ran) if operator.module or operator.node] == [
        "aten.addmm.default of 0",
        "aten.tanh.default of 1",
        "aten.addmm.default of 2",
        "aten.div.Tensor in DivBackward0",
        "aten.nll_loss_backward.default in NllLossBackward0",
        "aten._log_softmax_backward_data.default in LogSoftmaxBackward0",
        "aten.mm.default in AddmmBackward0 of 2",
        "aten.mm.default in AddmmBackward0 of 2",
        "aten.sum.dim_IntList in AddmmBackward0 of 2",
        "aten.tanh_backward.default in TanhBackward0 of 1",
        "aten.mm.default in AddmmBackward0 of 0",
        "aten.sum.dim_IntList in AddmmBackward0 of 0",
    ]
    update = [operator.name for operator in logged(ran) if operator.rank is None]
    assert update[-3:] == ["aten._foreach_add_.Scalar", "aten._fused_adamw_.default", "aten.zero_.default"]


def test_other_numbers_of_processes_call_the_same_operators_for_a_virtual_rank(tmp_path: Path) -> None:
    changes = {"virtual_ranks": 4, "determinism__level": "elastic"}
    one, two = (
        run(tmp_path, make_spec(ranks=ranks, **changes), name=str(ranks), environment={"XRUN_OPERATORS_STEP": STEP})
        for ranks in (1, 2)
    )
    both = in_common(logged(one), logged(two, 0) + logged(two, 1))
    assert {operator.rank for operator in both[0]} == {0, 1, 2, 3}
    assert sum(operator.name == "aten.addmm.default" for operator in both[0]) == 8
    assert first_operator(*both) is None


def operator(number: int, name: str, inputs: str, outputs: str, **places: Any) -> Operator:
    place = {"rank": 0, "module": "0", "node": "", **places}
    return Operator(number, f"aten.{name}.default", inputs=inputs * 16, outputs=outputs * 16, **place)


PAST = [operator(1, "mm", "1", "2"), operator(2, "relu", "2", "3"), operator(3, "add", "3", "4", module="")]


@pytest.mark.parametrize(
    ("again", "message"),
    [
        (
            [PAST[0], operator(2, "relu", "2", "9"), PAST[2]],
            "aten.relu.default of 0 computed other bits from equal inputs",
        ),
        (
            [PAST[0], PAST[1], operator(3, "add", "8", "9", module="")],
            "aten.add.default is given other inputs; what computed them is not in the log",
        ),
        (
            [PAST[0], operator(2, "tanh", "2", "3", node="TanhBackward0"), PAST[2]],
            "aten.tanh.default in TanhBackward0 of 0 is called, where the other run called aten.relu.default of 0",
        ),
        (PAST[:2], "aten.add.default is called by one of the runs only"),
    ],
    ids=["outputs", "inputs", "another operator", "an operator more"],
)
def test_the_first_operator_that_differs_is_named(again: list[Operator], message: str) -> None:
    parting = first_operator(PAST, again)
    assert isinstance(parting, Parting)
    assert parting.message == message
    assert parting.name == message.partition(" ")[0]


def test_equal_logs_have_no_operator_that_differs() -> None:
    assert first_operator(PAST, list(PAST)) is None


def test_a_log_is_read_as_it_was_written() -> None:
    assert read(io.BytesIO(b"".join(operator.line() for operator in PAST))) == PAST


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"number": 2}, "line 1 has number 2"),
        ({"number": True}, "line 1: its number is True"),
        ({"name": "aten.mm\x1b[2J"}, "line 1: its name is 'aten.mm\\x1b[2J'"),
        ({"rank": -1}, "line 1: its rank is -1"),
        ({"module": 7}, "line 1: its module is 7"),
        ({"inputs": "12"}, "line 1: its inputs is '12'"),
        ({"more": 1}, "line 1 is no operator"),
        ({"node": "x" * 5000}, "line 1 is cut short or has more than 4,096 bytes"),
    ],
)
def test_a_line_that_no_log_holds_is_refused(change: dict[str, Any], message: str) -> None:
    line = json.dumps({**PAST[0]._asdict(), **change}).encode() + b"\n"
    with pytest.raises(LogError) as refused:
        read(io.BytesIO(line))
    assert str(refused.value) == message


def test_a_log_that_is_cut_short_is_refused() -> None:
    with pytest.raises(LogError) as refused:
        read(io.BytesIO(PAST[0].line() + PAST[1].line()[:-1]))
    assert str(refused.value) == "line 2 is cut short or has more than 4,096 bytes"


def test_an_operator_that_differs_between_processes_is_named(tmp_path: Path) -> None:
    spec = make_spec(config__experiment__module="noisy")
    ran = [run(tmp_path, spec, name=name, environment={"XRUN_OPERATORS_STEP": "2"}) for name in ("a", "b")]
    parting = first_operator(*map(logged, ran))
    assert parting is not None
    assert (parting.name, parting.module) == ("noisy.ulp.default", "1")
    assert parting.message == "noisy.ulp.default in NoiseBackward of 1 computed other bits from equal inputs"
