import os
import stat
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from runner import source
from runner.errors import ConfigError, StoreError

GOLDEN = "sha256:6bc098247402dfcdd59b48438ad2cb8778ace1a935773cdea4138f80a1db1314"


def make_tree(root: Path) -> tuple[Path, Path]:
    """Make a small `experiments/` and a small in-container package."""
    experiments = root / "experiments"
    package = root / "package"
    for path, text in {
        experiments / "resnet50.py": "LAYERS = 50\n",
        experiments / "parts" / "größe.py": "",
        package / "__init__.py": "",
        package / "cli.py": "not in the container\n",
        package / "inside" / "__main__.py": "print('step')\n",
    }.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        path.chmod(0o644)
    return experiments, package


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_snapshot_holds_experiments_and_the_in_container_package(tmp_path: Path) -> None:
    experiments, package = make_tree(tmp_path)
    taken = source.snapshot(experiments, tmp_path / "runs", package=package)
    assert names(taken.folder) == [
        "experiments/parts/größe.py",
        "experiments/resnet50.py",
        "runner/__init__.py",
        "runner/inside/__main__.py",
    ]
    assert taken.folder == tmp_path / "runs" / ".source" / taken.digest.replace(":", "-")


def test_the_installed_package_is_what_a_snapshot_takes_by_default(tmp_path: Path) -> None:
    experiments, _ = make_tree(tmp_path)
    taken = source.snapshot(experiments, tmp_path / "runs")
    assert (taken.folder / "runner/inside/__init__.py").read_bytes() == b""


def test_equal_trees_give_the_digest_that_every_python_gives(tmp_path: Path) -> None:
    experiments, package = make_tree(tmp_path)
    assert source.snapshot(experiments, tmp_path / "runs", package=package).digest == GOLDEN


def test_times_and_permissions_of_others_do_not_reach_the_digest(tmp_path: Path) -> None:
    experiments, package = make_tree(tmp_path)
    first = source.snapshot(experiments, tmp_path / "runs", package=package)
    os.utime(experiments / "resnet50.py", (1, 1))
    (experiments / "resnet50.py").chmod(0o600)
    assert source.snapshot(experiments, tmp_path / "other", package=package).digest == first.digest


@pytest.mark.parametrize("change", ["edit", "add", "remove", "rename", "make executable"])
def test_every_change_of_the_tree_changes_the_digest(tmp_path: Path, change: str) -> None:
    experiments, package = make_tree(tmp_path)
    before = source.snapshot(experiments, tmp_path / "runs", package=package)
    module = experiments / "resnet50.py"
    match change:
        case "edit":
            module.write_text("LAYERS = 51\n", encoding="utf-8")
        case "add":
            (experiments / "new.py").touch()
        case "remove":
            module.unlink()
        case "rename":
            module.rename(experiments / "resnet51.py")
        case _:
            module.chmod(0o755)
    after = source.snapshot(experiments, tmp_path / "runs", package=package)
    assert after.digest != before.digest


def test_leftovers_and_secrets_stay_out_of_a_snapshot(tmp_path: Path) -> None:
    experiments, package = make_tree(tmp_path)
    before = source.snapshot(experiments, tmp_path / "runs", package=package)
    for leftover in (".env", ".netrc", ".git/config", "__pycache__/a.pyc", "parts/b.pyc", "c.py~", "#d.py#", ".e.swp"):
        (experiments / leftover).parent.mkdir(exist_ok=True)
        (experiments / leftover).write_text("secret", encoding="utf-8")
    assert source.snapshot(experiments, tmp_path / "runs", package=package).digest == before.digest


def test_the_ignore_file_keeps_files_and_folders_out(tmp_path: Path) -> None:
    experiments, package = make_tree(tmp_path)
    before = source.snapshot(experiments, tmp_path / "runs", package=package)
    for extra in ("scratch/a.py", "notes.txt", "parts/notes.txt", "parts/draft.py"):
        (experiments / extra).parent.mkdir(exist_ok=True)
        (experiments / extra).touch()
    (experiments / ".xrunignore").write_text("# mine\n\nscratch/\n*.txt\nparts/draft.*\n", encoding="utf-8")
    assert source.snapshot(experiments, tmp_path / "runs", package=package).digest == before.digest


def test_a_symbolic_link_is_refused_and_named(tmp_path: Path) -> None:
    experiments, package = make_tree(tmp_path)
    (experiments / "parts" / "data").symlink_to("/etc")
    with pytest.raises(ConfigError) as caught:
        source.snapshot(experiments, tmp_path / "runs", package=package)
    assert str(caught.value) == (
        "experiments/parts/data is a symbolic link; a source snapshot holds only files\n\n"
        f"hint: echo 'parts/data' >> '{experiments}/.xrunignore'"
    )


def test_a_fifo_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    experiments, package = make_tree(tmp_path)
    os.mkfifo(experiments / "pipe")
    with pytest.raises(ConfigError) as caught:
        source.snapshot(experiments, tmp_path / "runs", package=package)
    assert caught.value.message == ("experiments/pipe is neither file nor folder; a source snapshot holds only files")


def test_too_large_a_tree_is_refused_with_its_largest_files(tmp_path: Path) -> None:
    experiments, package = make_tree(tmp_path)
    for name, size in {"weights.bin": 60 << 20, "data.bin": 5 << 20, "small.bin": 1}.items():
        with (experiments / name).open("wb") as file:
            file.truncate(size)
    with pytest.raises(ConfigError) as caught:
        source.snapshot(experiments, tmp_path / "runs", package=package)
    assert str(caught.value) == (
        f"{experiments} holds 68,157,453 bytes, a source snapshot at most 67,108,864; the largest: "
        "experiments/weights.bin (62,914,560), experiments/data.bin (5,242,880), experiments/resnet50.py (12)\n\n"
        f"hint: echo 'weights.bin' >> '{experiments}/.xrunignore'"
    )
    assert not (tmp_path / "runs").exists()


def test_a_name_too_long_for_the_format_is_refused(tmp_path: Path) -> None:
    experiments, package = make_tree(tmp_path)
    name = "a" * 150
    (experiments / name).touch()
    with pytest.raises(ConfigError) as caught:
        source.snapshot(experiments, tmp_path / "runs", package=package)
    assert caught.value.message == f"experiments/{name}: name is too long; a source snapshot cannot hold it"


def test_no_experiments_folder_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        source.snapshot(tmp_path / "experiments", tmp_path / "runs")
    assert str(caught.value) == f"{tmp_path}/experiments is not a folder; experiments are modules in it"


def test_the_tar_says_nothing_of_who_made_it_or_when(tmp_path: Path) -> None:
    experiments, package = make_tree(tmp_path)
    taken = source.snapshot(experiments, tmp_path / "runs", package=package)
    with tarfile.open(taken.folder.with_suffix(".tar")) as tar:
        facts = {(member.mtime, member.uid, member.gid, member.uname, member.gname, member.mode) for member in tar}
    assert facts == {(0, 0, 0, "", "", 0o644)}


def test_the_unpacked_tree_cannot_be_written_by_accident(tmp_path: Path) -> None:
    experiments, package = make_tree(tmp_path)
    taken = source.snapshot(experiments, tmp_path / "runs", package=package)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (taken.folder, *taken.folder.rglob("*"))}
    assert modes == {0o444, 0o555}


@pytest.mark.parametrize("damage", ["edit", "add", "remove", "link"])
def test_a_tampered_unpacked_file_is_not_run(tmp_path: Path, damage: str) -> None:
    experiments, package = make_tree(tmp_path)
    taken = source.snapshot(experiments, tmp_path / "runs", package=package)
    module = taken.folder / "experiments/resnet50.py"
    before = module.stat()
    for folder in (taken.folder, module.parent):
        folder.chmod(0o755)
    match damage:
        case "edit":
            module.chmod(0o644)
            module.write_bytes(b"LAYERS = 51\n")
            os.utime(module, ns=(before.st_atime_ns, before.st_mtime_ns))
            module.chmod(0o444)
        case "add":
            module = module.with_name("sitecustomize.py")
            module.touch()
        case "remove":
            module.unlink()
        case _:
            module.unlink()
            module.symlink_to(experiments / "resnet50.py")
    with pytest.raises(StoreError) as caught:
        source.snapshot(experiments, tmp_path / "runs", package=package)
    assert str(caught.value) == (
        f"{module} is not what the snapshot holds\n\nhint: chmod -R u+w '{taken.folder}' && rm -r '{taken.folder}'"
    )


def test_a_tampered_tar_is_refused(tmp_path: Path) -> None:
    experiments, package = make_tree(tmp_path)
    taken = source.snapshot(experiments, tmp_path / "runs", package=package)
    tar = taken.folder.with_suffix(".tar")
    tar.chmod(0o644)
    tar.write_bytes(tar.read_bytes().replace(b"LAYERS = 50", b"LAYERS = 51"))
    with pytest.raises(StoreError) as caught:
        source.stored(tmp_path / "runs", taken.digest)
    assert caught.value.message.startswith(f"{tar} has been edited: its digest is sha256:")
    assert caught.value.hint == f"rm -f '{tar}'"


def test_a_snapshot_that_is_not_kept_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError) as caught:
        source.stored(tmp_path / "runs", GOLDEN)
    assert str(caught.value) == f"source snapshot {GOLDEN} is not in {tmp_path}/runs/.source"


def test_a_kept_snapshot_outlives_the_tree_and_is_unpacked_again(tmp_path: Path) -> None:
    experiments, package = make_tree(tmp_path)
    taken = source.snapshot(experiments, tmp_path / "runs", package=package)
    (experiments / "resnet50.py").write_text("LAYERS = 0\n", encoding="utf-8")
    subprocess.run(["/bin/sh", "-c", f"chmod -R u+w '{taken.folder}' && rm -r '{taken.folder}'"], check=True)
    again = source.stored(tmp_path / "runs", taken.digest)
    assert (again.folder / "experiments/resnet50.py").read_text(encoding="utf-8") == "LAYERS = 50\n"


def test_processes_that_take_the_same_snapshot_at_once_agree(tmp_path: Path) -> None:
    make_tree(tmp_path)
    program = (
        "import sys; from pathlib import Path; from runner import source; root = Path(sys.argv[1]);"
        "print(source.snapshot(root / 'experiments', root / 'runs', package=root / 'package').digest)"
    )
    argv = [sys.executable, "-c", program, str(tmp_path)]
    children = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    digests = {child.communicate()[0].strip() for child in children}
    assert digests == {GOLDEN}
    assert len(list((tmp_path / "runs" / ".source").iterdir())) == 2
