import json
import os
import signal
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from sample_runs import finished, make_record, make_spec, make_started

from runner.canonical import canonical_bytes
from runner.errors import StoreError
from runner.run_folder import RunFolder
from runner.store import RunStore


def leave(folder: RunFolder) -> None:
    """Let go of a run as a process does that dies."""
    assert folder.owner is not None
    os.close(folder.owner)


def test_a_run_is_named_by_experiment_spec_and_number(tmp_path: Path) -> None:
    runs = RunStore(tmp_path / "runs")
    stem = make_spec().run_stem
    assert [runs.start(make_spec(), make_started()).id for _ in range(3)] == [f"{stem}-1", f"{stem}-2", f"{stem}-3"]
    assert runs.start(make_spec(seed=1), make_started(seed=1)).id == f"{make_spec(seed=1).run_stem}-1"


def test_a_started_run_holds_its_spec_and_an_empty_out(tmp_path: Path) -> None:
    runs = RunStore(tmp_path / "runs")
    folder = runs.start(make_spec(), make_started())
    assert sorted(path.name for path in folder.path.iterdir()) == [
        "control",
        "out",
        "owner",
        "spec.json",
        "started.json",
    ]
    assert folder.spec.read_bytes() == make_spec().canonical()
    assert runs.load_spec(folder) == make_spec()


def test_the_record_of_a_finished_run_is_what_was_written(tmp_path: Path) -> None:
    runs = RunStore(tmp_path / "runs")
    folder = finished(runs)
    assert runs.load(runs.find("last")) == make_record(folder.id, make_started())
    assert runs.look(folder).status == "done"


def test_the_files_of_a_finished_run_are_read_only(tmp_path: Path) -> None:
    runs = RunStore(tmp_path / "runs")
    folder = runs.start(make_spec(), make_started())
    (folder.out / "weights.bin").touch()
    folder.log.touch()
    runs.finish(folder, make_record(folder.id, make_started()))
    files = [path for path in folder.path.rglob("*") if path.is_file()]
    assert len(files) == 6
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o444}


def test_a_link_that_a_container_left_does_not_change_a_file_of_the_host(tmp_path: Path) -> None:
    runs = RunStore(tmp_path / "runs")
    folder = runs.start(make_spec(), make_started())
    hosts = tmp_path / "shadow"
    hosts.touch(0o640)
    (folder.out / "soft").symlink_to(hosts)
    (folder.out / "hard").hardlink_to(hosts)
    os.mkfifo(folder.out / "pipe")
    runs.finish(folder, make_record(folder.id, make_started()))
    assert stat.S_IMODE(hosts.stat().st_mode) == 0o640


def test_folders_deeper_than_any_walk_do_not_keep_a_run_from_ending(tmp_path: Path) -> None:
    runs = RunStore(tmp_path / "runs")
    folder = runs.start(make_spec(), make_started())
    deep = "for i in $(seq 1500); do mkdir d && cd d || exit; done"
    subprocess.run(["/bin/sh", "-c", deep], cwd=folder.out, check=True)
    runs.finish(folder, make_record(folder.id, make_started()))
    assert runs.look(folder).status == "done"
    subprocess.run(["/bin/rm", "-r", folder.out], check=True)


def test_a_run_ends_once(tmp_path: Path) -> None:
    runs = RunStore(tmp_path / "runs")
    folder = runs.start(make_spec(), make_started())
    folder.record.touch()
    with pytest.raises(StoreError) as caught:
        runs.finish(folder, make_record(folder.id, make_started()))
    assert caught.value.message == f"{folder.id} has a record already; a run ends once"


def test_a_run_is_running_while_its_xrun_lives_and_interrupted_after_it_was_killed(tmp_path: Path) -> None:
    program = (
        "import sys, time; sys.path.insert(0, sys.argv[1]); from pathlib import Path; import sample_runs as t;"
        "folder = t.RunStore(Path(sys.argv[2])).start(t.make_spec(), t.make_started());"
        "print(folder.id, flush=True); time.sleep(600)"
    )
    argv = [sys.executable, "-c", program, str(Path(__file__).parent), str(tmp_path / "runs")]
    runs = RunStore(tmp_path / "runs")
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        folder = runs.find(owner.stdout.readline().strip())
        assert runs.look(folder).status == "running"
        owner.send_signal(signal.SIGKILL)
    assert runs.look(folder).status == "interrupted"
    assert runs.look(folder).facts == make_started()
    with pytest.raises(StoreError) as caught:
        runs.load(folder)
    assert str(caught.value) == f"{folder.id} has no record: it was interrupted\n\nhint: xrun ls"


def test_a_program_that_a_run_starts_does_not_keep_it_running(tmp_path: Path) -> None:
    runs = RunStore(tmp_path / "runs")
    folder = runs.start(make_spec(), make_started())
    with subprocess.Popen(["/bin/sleep", "600"]) as child:
        leave(folder)
        assert runs.look(folder).status == "interrupted"
        child.kill()


def test_processes_that_start_runs_at_once_get_ids_of_their_own(tmp_path: Path) -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; import sample_runs as t;"
        "runs = t.RunStore(Path(sys.argv[2]));"
        "sys.stdin.readline();"
        "print(*(runs.start(t.make_spec(), t.make_started()).id for _ in range(25)))"
    )
    argv = [sys.executable, "-c", program, str(Path(__file__).parent), str(tmp_path / "runs")]
    starters = [subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    ids = [name for starter in starters for name in starter.communicate("go\n")[0].split()]
    stem = make_spec().run_stem
    assert sorted(ids) == sorted(f"{stem}-{number}" for number in range(1, 101))
    assert {run.status for run in RunStore(tmp_path / "runs").runs()} == {"interrupted"}


def test_runs_are_listed_newest_first(tmp_path: Path) -> None:
    runs = RunStore(tmp_path / "runs")
    old, new, middle = (finished(runs, seed, seconds) for seed, seconds in enumerate((1.0, 3.0, 2.0)))
    assert [run.folder.id for run in runs.runs()] == [new.id, middle.id, old.id]
    assert runs.find("last").id == new.id


def test_an_id_may_be_shortened_while_it_is_the_only_one(tmp_path: Path) -> None:
    runs = RunStore(tmp_path / "runs")
    folder = finished(runs)
    assert runs.find(folder.id[:10]).id == folder.id
    assert runs.find(folder.id).id == folder.id


def test_a_whole_id_is_found_though_it_begins_another(tmp_path: Path) -> None:
    runs = RunStore(tmp_path / "runs")
    folders = [finished(runs) for _ in range(10)]
    assert runs.find(folders[0].id).id == folders[0].id == folders[9].id.removesuffix("0")


def test_an_ambiguous_id_names_the_runs_it_may_mean(tmp_path: Path) -> None:
    runs = RunStore(tmp_path / "runs")
    ids = [finished(runs).id for _ in range(7)]
    with pytest.raises(StoreError) as caught:
        runs.find("res")
    assert str(caught.value) == f"'res' begins the ids of {', '.join(ids[:5])} and 2 more\n\nhint: xrun ls"


@pytest.mark.parametrize("text", ["vgg", "", ".", "..", "/", ".source", "resnet50-00000000-1"])
def test_an_unknown_id_is_said_so(tmp_path: Path, text: str) -> None:
    runs = RunStore(tmp_path / "runs")
    finished(runs)
    (tmp_path / "runs" / ".source").mkdir()
    with pytest.raises(StoreError) as caught:
        runs.find(text)
    assert str(caught.value) == f"no run {text!r} in {tmp_path}/runs\n\nhint: xrun ls"


def test_last_of_no_runs_says_how_to_make_one(tmp_path: Path) -> None:
    runs = RunStore(tmp_path / "runs")
    with pytest.raises(StoreError) as caught:
        runs.find("last")
    assert str(caught.value) == f"there is no run in {tmp_path}/runs yet\n\nhint: xrun experiment=resnet50"
    assert runs.runs() == []


def test_an_edited_record_is_refused_and_named(tmp_path: Path) -> None:
    runs = RunStore(tmp_path / "runs")
    folder = finished(runs)
    folder.record.chmod(0o644)
    folder.record.write_bytes(folder.record.read_bytes().replace(b'"accuracy":0.1', b'"accuracy":0.9'))
    with pytest.raises(StoreError) as caught:
        runs.load(folder)
    assert caught.value.message.startswith(f"{folder.record} has been edited: it states sha256:")


def test_the_record_of_another_run_is_refused(tmp_path: Path) -> None:
    runs = RunStore(tmp_path / "runs")
    first, second = finished(runs), finished(runs)
    second.record.unlink()
    second.record.write_bytes(first.record.read_bytes())
    with pytest.raises(StoreError) as caught:
        runs.load(second)
    assert caught.value.message == f"{second.record} is the record of {first.id}"


def test_a_damaged_run_does_not_hide_the_others(tmp_path: Path) -> None:
    runs = RunStore(tmp_path / "runs")
    whole, damaged, empty = (finished(runs) for _ in range(3))
    damaged.record.chmod(0o644)
    damaged.record.write_bytes(b"{}")
    for path in (empty.record, empty.started):
        path.unlink()
    assert {run.folder.id: run.status for run in runs.runs()} == {
        whole.id: "done",
        damaged.id: "damaged",
        empty.id: "damaged",
    }


def test_a_spec_of_an_older_xrun_is_refused_by_its_version(tmp_path: Path) -> None:
    runs = RunStore(tmp_path / "runs")
    folder = finished(runs)
    older = json.loads(folder.spec.read_bytes()) | {"version": 1}
    del older["virtual_ranks"]
    folder.spec.chmod(0o644)
    folder.spec.write_bytes(canonical_bytes(older))
    with pytest.raises(StoreError) as caught:
        runs.load_spec(folder)
    assert caught.value.message == f"{folder.spec} cannot be read: version: this xrun reads version 2, found 1"


def test_an_edited_spec_is_refused(tmp_path: Path) -> None:
    runs = RunStore(tmp_path / "runs")
    folder = finished(runs)
    folder.spec.chmod(0o644)
    folder.spec.write_bytes(make_spec(seed=1).canonical())
    with pytest.raises(StoreError) as caught:
        runs.load_spec(folder)
    assert caught.value.message == f"{folder.spec} has been edited: its digest is {make_spec(seed=1).digest}"


def test_a_record_in_another_version_is_refused(tmp_path: Path) -> None:
    runs = RunStore(tmp_path / "runs")
    folder = runs.start(make_spec(), make_started())
    runs.finish(folder, replace(make_record(folder.id, make_started()), version=2))
    with pytest.raises(StoreError) as caught:
        runs.load(folder)
    assert caught.value.message == f"{folder.record} version: this xrun reads version 1, found 2"


def test_a_store_that_is_no_folder_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "runs").touch()
    with pytest.raises(StoreError) as caught:
        RunStore(tmp_path / "runs").runs()
    assert str(caught.value) == f"{tmp_path}/runs cannot be read: Not a directory"
    with pytest.raises(StoreError) as caught:
        RunStore(tmp_path / "runs").start(make_spec(), make_started())
    assert str(caught.value) == f"cannot make a run's folder below {tmp_path}/runs: Not a directory"
