"""SLURM's answers, read."""

import pytest

from runner.machine import Gpu
from runner.slurm.attempt import allotted
from runner.slurm.states import JobState, QueuedJob, accounted_jobs, left_behind, queued_jobs


def test_a_line_of_the_queue_is_read_whatever_the_folder_is_called() -> None:
    assert queued_jobs("12_3|xrun-0123abcd|PENDING|Priority|/a b|c %j\n") == [
        QueuedJob(
            id="12_3",
            name="xrun-0123abcd",
            folder="/a b|c %j",
            state=JobState(word="queued", reason="Priority"),
        )
    ]


@pytest.mark.parametrize(
    ("state", "word", "has_ended"),
    [
        ("PENDING", "queued", False),
        ("CONFIGURING", "queued", False),
        ("RUNNING", "running", False),
        ("COMPLETING", "running", False),
        ("SUSPENDED", "running", False),
        ("PREEMPTED", "requeued", False),
        ("REQUEUED", "requeued", False),
        ("NODE_FAIL", "requeued", False),
        ("COMPLETED", "done", True),
        ("FAILED", "failed", True),
        ("CANCELLED", "cancelled", True),
        ("TIMEOUT", "timeout", True),
        ("OUT_OF_MEMORY", "out-of-memory", True),
        ("BOOT_FAIL", "lost", True),
    ],
)
def test_a_state_of_the_queue_is_one_of_a_few_words(state: str, word: str, has_ended: bool) -> None:  # noqa: FBT001
    (job,) = queued_jobs(f"1|name|{state}|None|/folder\n")
    assert (job.state.word, job.state.has_ended) == (word, has_ended)


def test_accounts_tell_how_a_job_ended_that_the_queue_forgot() -> None:
    text = "1|COMPLETED|0:0\n2|CANCELLED by 1000|0:15\n3|NODE_FAIL|1:0\n4|RUNNING|0:0\n5_7|TIMEOUT|0:0\n"
    words = {job: state.word for job, state in accounted_jobs(text).items()}
    assert words == {"1": "done", "2": "cancelled", "3": "lost", "5_7": "timeout"}


def test_without_accounts_the_exit_code_that_the_script_left_tells() -> None:
    assert [left_behind(code).word for code in (0, 1, None)] == ["done", "failed", "lost"]


GPUS = tuple(Gpu(uuid=f"GPU-{number}", model="H100", memory_bytes=1, driver="580") for number in range(4))


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, []),
        ({"SLURM_STEP_GPUS": "1,3", "SLURM_JOB_GPUS": "0,1,2,3"}, [1, 3]),
        ({"SLURM_JOB_GPUS": "2"}, [2]),
        ({"CUDA_VISIBLE_DEVICES": "GPU-3,GPU-0"}, [3, 0]),
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, [0, 1, 2, 3]),
        ({"SLURM_STEP_GPUS": "7"}, []),
    ],
)
def test_a_step_has_the_gpus_that_slurm_gave_it(environment: "dict[str, str]", wanted: "list[int]") -> None:
    assert [gpu.uuid for gpu in allotted(GPUS, environment)] == [f"GPU-{number}" for number in wanted]


def test_where_slurm_hides_the_others_all_that_are_seen_are_the_steps() -> None:
    assert allotted(GPUS[2:], {"SLURM_STEP_GPUS": "2,3", "CUDA_VISIBLE_DEVICES": "0,1"}) == GPUS[2:]
