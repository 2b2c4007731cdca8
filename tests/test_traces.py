"""Traces as hostile bytes: any byte changed, cut or made up is refused, with its place."""

import json
from pathlib import Path

import pytest

from runner.errors import StoreError
from runner.inside.operator_log import Operator
from runner.inside.trace import CHANNELS, SLICED, Header, Tensor, TraceError, first_link, layout, link, pack, word
from runner.inside.trace_header import read_header
from runner.traces import opened_traces, operator_logs

HEADER = Header(
    digest="sha256/8",
    level="repeat",
    virtual_rank=0,
    virtual_ranks=1,
    world_size=1,
    torch="2",
    knobs={"threads": 1},
    numerics={"mm": "0" * 16},
    weights="sha256:" + "0" * 64,
    slices=2,
    parameters=(Tensor("a", (2, 2), "float32", 0), Tensor("b", (), "bfloat16", 1), Tensor("c", (3,), "float32", 1)),
    buffers=(),
)


def write(out: Path, steps: int = 3) -> Path:
    out.mkdir(exist_ok=True)
    place, chain, content = layout(HEADER), first_link(HEADER.weights), HEADER.line()
    for step in range(1, steps + 1):
        words = {channel: word(step / 10) for channel in CHANNELS}
        tensors = {channel: [word(step)] * len(HEADER.looked_at(channel, step)) for channel in SLICED}
        record = pack(place, step, words, tensors)
        chain = link(chain, record)
        content += record + chain
    (out / "trace-rank0.bin").write_bytes(content)
    return out / "trace-rank0.bin"


def refusal(out: Path, ranks: int = 1) -> str:
    with pytest.raises(TraceError) as refused:
        verify(out, ranks)
    return str(refused.value)


def verify(out: Path, ranks: int) -> None:
    with opened_traces(out, ranks) as traces:
        for trace in traces:
            trace.verify()


def test_a_trace_is_read_back_bit_for_bit(tmp_path: Path) -> None:
    write(tmp_path)
    with opened_traces(tmp_path, 1) as [trace]:
        trace.verify()
        assert trace.header == HEADER
        assert trace.count() == 3
        record = trace.record(1)
        assert (record.step, record.number("loss"), record.channels["batch"]) == (2, 0.2, word(0.2))
        assert [len(record.tensors[channel]) for channel in SLICED] == [1, 1, 1, 1, 0, 1]
        assert [len(trace.record(2).tensors[channel]) for channel in SLICED] == [2, 2, 2, 2, 0, 2]


def test_any_changed_byte_of_a_record_breaks_the_chain_at_its_step(tmp_path: Path) -> None:
    path = write(tmp_path)
    content, size = path.read_bytes(), layout(HEADER).record_bytes
    for at in range(len(HEADER.line()), len(content), 7):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        step = (at - len(HEADER.line())) // size + 1
        assert refusal(tmp_path) == f"out/trace-rank0.bin has been edited: its chain breaks at step {step}"


def test_a_trace_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path)
    path.write_bytes(path.read_bytes()[:-1])
    size = layout(HEADER).record_bytes - 1
    assert refusal(tmp_path) == f"out/trace-rank0.bin is cut short: {size} bytes after the last whole record"


def test_a_trace_that_still_grows_counts_its_whole_records(tmp_path: Path) -> None:
    path = write(tmp_path)
    path.write_bytes(path.read_bytes()[:-1])
    with opened_traces(tmp_path, 1) as [trace]:
        assert trace.count() == 2


def test_the_steps_must_be_in_order(tmp_path: Path) -> None:
    path, size = write(tmp_path), layout(HEADER).record_bytes
    content, start = path.read_bytes(), len(HEADER.line())
    path.write_bytes(content[:start] + content[start + size :])
    with opened_traces(tmp_path, 1) as [trace], pytest.raises(TraceError) as refused:
        trace.record(0)
    assert str(refused.value) == "out/trace-rank0.bin: step 2 stands in the place of step 1"


def test_another_ranks_trace_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path)
    path.with_name("trace-rank1.bin").write_bytes(path.read_bytes())
    assert refusal(tmp_path, 2) == "out/trace-rank0.bin is of rank 0 of 1"


def test_what_is_no_plain_file_is_not_opened(tmp_path: Path) -> None:
    path = write(tmp_path)
    path.rename(tmp_path / "elsewhere")
    assert refusal(tmp_path) == "out/trace-rank0.bin cannot be read: No such file or directory"
    path.symlink_to("elsewhere")
    assert refusal(tmp_path) == "out/trace-rank0.bin is a symbolic link; outputs are plain files"


def test_an_operator_log_is_read_as_the_hostile_bytes_that_it_is(tmp_path: Path) -> None:
    operator = Operator(1, "aten.mm.default", 0, "fc", "", "0" * 16, "1" * 16)
    path = tmp_path / "operators-rank0.jsonl"
    path.write_bytes(operator.line())
    assert operator_logs(tmp_path, 1) == [[operator]]
    with pytest.raises(StoreError, match=r"^out/operators-rank1.jsonl cannot be read: No such file or directory$"):
        operator_logs(tmp_path, 2)
    path.write_bytes(b"x" * (1 << 20))
    with pytest.raises(
        StoreError, match=r"^out/operators-rank0.jsonl: line 1 is cut short or has more than 4,096 bytes$"
    ):
        operator_logs(tmp_path, 1)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to("elsewhere")
    with pytest.raises(StoreError, match=r"^out/operators-rank0.jsonl is a symbolic link; outputs are plain files$"):
        operator_logs(tmp_path, 1)


LINE = json.loads(HEADER.line())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"\xff\x00", "it is no trace: its first line is no JSON"),
        (b"[" * 100_000, "it is no trace: its first line is no JSON"),
        (b"[]", "it is no trace"),
        ({"format": "other"}, "it is no trace"),
        ({"version": 1}, "its format has version 1; this xrun reads version 3"),
        ({"channels": []}, "its channels are not those of version 3"),
        ({"virtual_rank": True}, "its virtual_rank is True"),
        ({"slices": 0}, "its slices is 0"),
        ({"slices": 10**9}, "its slices is 1000000000"),
        ({"weights": "sha256:0"}, "its weights is 'sha256:0', not a digest"),
        ({"parameters": [["a", [2], "float32", 2]]}, "its table of tensors holds ['a', [2], 'float32', 2]"),
        ({"buffers": [["a", ["x"], "float32", 0]]}, "its table of tensors holds ['a', ['x'], 'float32', 0]"),
        ({"buffers": 3}, "its buffers is 3"),
    ],
)
def test_a_first_line_that_is_not_as_it_should_be_is_refused(line: "bytes | dict[str, object]", message: str) -> None:
    with pytest.raises(TraceError) as refused:
        read_header(line if isinstance(line, bytes) else json.dumps(LINE | line).encode())
    assert str(refused.value) == message
