import json
import time
from pathlib import Path

import pytest
from sample_runs import make_started

from runner.canonical import digest_of
from runner.engines.request import Outcome
from runner.execute import Followed, Watcher, judge, supervise
from runner.run_folder import RunFolder
from runner.terms import Terms

NONCE = "a" * 32
DIGEST = digest_of(b"")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def complete(out: Path, nonce: str = NONCE) -> None:
    manifest = {"nonce": nonce, "fingerprint": DIGEST, "weights": DIGEST, "steps": 1, "metrics": {}, "files": {}}
    (out / "done.json").write_text(json.dumps(manifest))


def test_a_run_is_done_when_its_manifest_holds(out: Path) -> None:
    complete(out)
    assert judge(Outcome(kind="exited", exit_code=0), out, NONCE).status == "done"


def test_exit_code_0_without_a_manifest_is_no_success(out: Path) -> None:
    ending = judge(Outcome(kind="exited", exit_code=0), out, NONCE)
    assert (ending.status, ending.exit_code, ending.completion) == ("failed", 0, None)


def test_the_manifest_of_another_run_is_no_success(out: Path) -> None:
    complete(out, nonce="b" * 32)
    ending = judge(Outcome(kind="exited", exit_code=0), out, NONCE)
    assert (ending.status, ending.message) == ("failed", "out/done.json is not this run's: it carries another nonce")


def test_a_manifest_beside_a_failure_is_no_success(out: Path) -> None:
    complete(out)
    ending = judge(Outcome(kind="exited", exit_code=3), out, NONCE)
    assert (ending.status, ending.exit_code, ending.message) == ("failed", 3, "exit code 3")


def test_out_of_memory_is_told_even_when_the_exit_code_is_0(out: Path) -> None:
    complete(out)
    ending = judge(Outcome(kind="out-of-memory", exit_code=0, detail="more than 1 GiB"), out, NONCE)
    assert (ending.status, ending.message) == ("out-of-memory", "more than 1 GiB")


def test_a_lost_container_is_lost_whatever_it_left(out: Path) -> None:
    complete(out)
    ending = judge(Outcome(kind="lost", exit_code=255), out, NONCE)
    assert (ending.status, ending.message) == ("lost", "the engine lost the container")


def test_a_failure_is_told_in_the_words_of_the_rank_that_failed_first(out: Path) -> None:
    (out / "errors").mkdir()
    (out / "errors" / "rank1.txt").write_text("Traceback (most recent call last):\n  ...\nValueError: no such layer\n")
    ending = judge(Outcome(kind="exited", exit_code=1), out, NONCE)
    assert ending.status == "failed"
    assert "ValueError: no such layer" in ending.message


class Ended:
    """A container that has ended well."""

    def wait(self, timeout_s: float) -> Outcome:  # noqa: ARG002, it has ended
        return Outcome(kind="exited", exit_code=0)

    def stop(self, grace_s: float) -> None:
        pass

    def pid(self) -> None:
        pass

    def remove(self) -> None:
        pass


def test_what_a_run_holds_is_let_go_of_before_its_files_are_digested(out: Path) -> None:
    complete(out)
    # What is written when the run lets go is there when its files are digested, or was not.
    watcher = Watcher(
        begin=lambda _folder, _pid: None,
        event=lambda _event: None,
        end=lambda record: record,
        say=lambda _line: None,
        gone=(out / "late.txt").touch,
    )
    terms = Terms(
        started=make_started(),
        is_command=True,
        nonce=NONCE,
        hang_timeout_s=60,
        timeout_s=0,
        grace_s=1,
        begun_s=time.monotonic(),
    )
    run = Followed(terms=terms, folder=RunFolder(path=out.parent), container=Ended(), watcher=watcher)
    assert supervise(run)[0].message == "out/late.txt was written but is not in done.json"
