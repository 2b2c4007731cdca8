"""Python files compiled by the image's own interpreter, so that no byte depends on the Python that runs xrun."""

import platform
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from runner.errors import ImageError
from runner.images.recipe import Recipe
from runner.images.root import Layer, Root
from runner.images.tar import file

_SCRIPT = Path(__file__).with_name("bytecode_inside.py")
_LIBRARIES = "usr/lib/x86_64-linux-gnu"
# What one process compiled before may show in the marshalled bytes, so files are dealt out the same way everywhere,
# to the same number of processes on any number of cores.
_SHARDS = 4


def sources(root: Root) -> list[str]:
    """Return the paths of all Python files of a root, sorted."""
    return sorted(path for path, entry in root.entries.items() if path.endswith(".py") and entry.kind == "file")


@contextmanager
def compiling(root: Root, recipe: Recipe, work: Path) -> Iterator[None]:
    """Compile all Python files of a root beside the block, and be done when the block ends. `work` is for own files."""
    processes = [_start(root, recipe, shard, work / f"shard{i}") for i, shard in enumerate(_shards(sources(root)))]
    try:
        yield
        for process in processes:
            _, said = process.communicate()
            if process.returncode != 0:
                raise ImageError(f"the image's own Python cannot compile its files: {said.decode(errors='replace')}")
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _shards(paths: Sequence[str]) -> list[Sequence[str]]:
    return [paths[i::_SHARDS] for i in range(_SHARDS) if paths[i::_SHARDS]]


def _start(root: Root, recipe: Recipe, shard: Sequence[str], listed: Path) -> subprocess.Popen[bytes]:
    if platform.machine() != "x86_64":
        raise ImageError(
            f"a {recipe.platform} image is compiled by its own Python; this machine is {platform.machine()}"
        )
    listed.write_text("".join(f"{path}\n" for path in shard))
    # The image's loader and libraries, not this machine's; no namespace or chroot is needed for that.
    libraries = root.path / _LIBRARIES
    loader = [str(libraries / "ld-linux-x86-64.so.2"), "--inhibit-cache", "--library-path", str(libraries)]
    python = [str(root.path / f"usr/bin/python{recipe.python}"), "-S", "-s", "-P", "-B", "-W", "ignore"]
    environment = {"PYTHONHASHSEED": "0", "PYTHONHOME": str(root.path / "usr"), "LC_ALL": "C.UTF-8"}
    with listed.open("rb") as paths:
        return subprocess.Popen(
            [*loader, *python, str(_SCRIPT), str(root.path)],
            stdin=paths,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=environment,
        )


def add_compiled(root: Root, recipe: Recipe) -> Layer:
    """Return the layer of the compiled files, which lie in the root already."""
    layer: Layer = {}
    tag = "cpython-" + recipe.python.replace(".", "")
    for source in sources(root):
        parent, _, name = source.rpartition("/")
        path = f"{parent}/__pycache__/{name.removesuffix('.py')}.{tag}.pyc"
        compiled = root.path / path
        if compiled.is_file():
            compiled.chmod(0o644)
            root.adopt(layer, file(path, compiled.stat().st_size))
    return layer
