import pytest
from sample_runs import make_record, make_started

from runner import record
from runner.canonical import digest_of
from runner.parse import ParseError, parse
from runner.record import Conducted, Record, Started

EMPTY = digest_of(b"{}")


def test_a_record_reads_back_as_it_was_written() -> None:
    made = make_record("resnet50-00000000-1", make_started())
    assert record.from_bytes(Record, record.to_bytes(made)) == made
    assert record.from_bytes(Started, record.to_bytes(make_started())) == make_started()


def test_every_flipped_bit_is_noticed() -> None:
    whole = record.to_bytes(make_record("resnet50-00000000-1", make_started()))
    for bit in range(len(whole) * 8):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ParseError):
            record.from_bytes(Record, bytes(damaged))


def test_every_cut_is_noticed() -> None:
    whole = record.to_bytes(make_record("resnet50-00000000-1", make_started()))
    for length in range(len(whole)):
        with pytest.raises(ParseError):
            record.from_bytes(Record, whole[:length])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no JSON: Expecting value: line 1 column 1 (char 0)"),
        ('{"id":1,"id":2}', "is no JSON: a key stands twice"),
        ('{"loss":NaN}', "is no JSON: NaN is no JSON number"),
        (
            "[" * 100_000,
            "is no JSON: maximum recursion depth exceeded while decoding a JSON array from a unicode string",
        ),
        ("[]", "has been edited: it is not the text that xrun writes"),
        ('{"id": 1}', "has been edited: it is not the text that xrun writes"),
        ('{"digest":1}', f"has been edited: it states 1, its content is {EMPTY}"),
    ],
)
def test_what_is_no_record_is_refused_with_a_reason(text: str, message: str) -> None:
    with pytest.raises(ParseError) as caught:
        record.from_bytes(Record, text.encode())
    assert str(caught.value) == message


def test_every_wrong_value_of_a_record_is_named_at_once() -> None:
    made = Record(
        **(make_started().facts() | {"version": 2, "source": "latest", "started_at": "yesterday"}),
        id="resnet50-00000000-1",
        status="done",
        exit_code=0,
        finished_at="2026-01-31 12:00",
        duration_s=1.0,
    )
    with pytest.raises(ParseError) as caught:
        record.from_bytes(Record, record.to_bytes(made))
    assert str(caught.value) == (
        "version: this xrun reads version 1, found 2\n"
        "source: expected a digest (sha256:<64 hex>), found 'latest'\n"
        "started_at: expected a time such as 2026-01-31T12:00:00.000Z, found 'yesterday'\n"
        "finished_at: expected a time such as 2026-01-31T12:00:00.000Z, found '2026-01-31 12:00'"
    )


def test_a_record_of_unknown_keys_is_refused() -> None:
    with pytest.raises(ParseError) as caught:
        record.from_bytes(Started, record.to_bytes(make_record("resnet50-00000000-1", make_started())))
    assert "fingerprint: unknown key" in str(caught.value)


def test_times_sort_as_texts() -> None:
    assert record.timestamp(0.0) == "1970-01-01T00:00:00.000Z"
    assert record.timestamp(1.9996) < record.timestamp(2.0) < record.timestamp(10.0)


def test_a_run_recorded_before_there_were_nodes_had_one() -> None:
    limits = {"memory_bytes": 1, "pids": 1, "shm_bytes": 1, "tmp_bytes": 1}
    tracking: dict[str, object] = {
        "wandb": "off",
        "project": "p",
        "entity": None,
        "tags": [],
        "group": None,
        "log_every_steps": 1,
    }
    scheduler = {"kind": "local", "timeout_s": 0, "hang_timeout_s": 60}
    old = {"limits": limits, "tracking": tracking, "scheduler": scheduler, "data_recipe": None}
    assert parse(Conducted, old).nodes == 1
