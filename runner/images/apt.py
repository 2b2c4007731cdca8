"""Debian packages through the machine's apt: its sources, keys and proxies, but xrun's own state, so no root."""

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import unquote

from runner.canonical import digest_of_file
from runner.errors import ImageError
from runner.images import downloads
from runner.images.disk import ProgramFailed, Say, aside, program, room
from runner.images.recipe import DebPin, Recipe

_RELOCK = "xrun lock --upgrade image"

# Read after the machine's own settings (-c), whose hooks after an update are for the machine's cache, not for ours.
_CONFIG = """\
Dir::State "{state}";
Dir::State::status "{state}/status";
Dir::Cache "{state}/cache";
Dir::Etc::preferences "{preferences}";
Dir::Etc::preferencesparts "{state}/none";
APT::Architecture "{architecture}";
#clear APT::Architectures;
APT::Architectures {{ "{architecture}"; }};
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
APT::Sandbox::User "root";
APT::Install-Recommends "false";
APT::Install-Suggests "false";
Acquire::Languages "none";
Acquire::ForceHash "sha256";
"""


def refresh(recipe: Recipe, home: Path, say: Say) -> None:
    """Fetch the package lists of the machine's apt sources into a state of xrun's own."""
    say("reading the package lists of this machine's apt sources")
    config = _config(recipe, home, ())
    try:
        program(["apt-get", "-c", str(config), "-q", "update"], "apt-get update", writes=config)
    except ProgramFailed as failed:
        # A foreign source that cannot be reached takes nothing away from the others; what is missing, fetch names.
        say(f"some apt sources could not be read: {failed.message.splitlines()[-1]}")


def resolve(recipe: Recipe, kept: Iterable[DebPin], home: Path) -> tuple[tuple[DebPin, ...], tuple[DebPin, ...]]:
    """Pin the packages that a recipe asks for with all they depend on, and its data packages alone.

    A kept pin that the sources still have stays. Needs fresh lists. Raises ImageError with what apt said.
    """
    try:
        return _resolve(recipe, kept, home)
    except ProgramFailed:
        # A kept package may need exactly the version of one that is gone. Then only apt can say what goes together.
        return _resolve(recipe, (), home)


def _resolve(recipe: Recipe, kept: Iterable[DebPin], home: Path) -> tuple[tuple[DebPin, ...], tuple[DebPin, ...]]:
    config = str(_config(recipe, home, kept))
    asked = ["apt-get", "-c", config, "-q", "-y", "--print-uris"]
    what = f"apt cannot give what images/{recipe.name}/recipe.toml asks for"
    # Its own list of packages is empty, so apt pulls in all that is needed.
    lines = program([*asked, "install", *recipe.packages], what, writes=home)
    packages = [pin for pin in _pins(lines) if pin.name not in recipe.without]
    data = sorted({data.package for data in recipe.data.values()})
    lines = program([*asked, "download", *data], what, writes=home) if data else ""
    return tuple(packages), tuple(_pins(lines))


def _pins(lines: str) -> list[DebPin]:
    """Read lines of the form 'URI' name_version_architecture.deb size SHA256:hex."""
    pins = []
    for line in lines.splitlines():
        if not line.startswith("'"):
            continue
        _, filename, size, digest = line.split()
        name, version, architecture = unquote(filename).removesuffix(".deb").split("_")
        if not digest.startswith("SHA256:"):
            raise ImageError(f"the apt sources give no sha256 for {name} {version}; xrun pins nothing else")
        sha256 = digest.lower()
        pins.append(DebPin(name=name, version=version, architecture=architecture, sha256=sha256, size=int(size)))
    return sorted(pins, key=lambda pin: pin.name)


def fetch(recipe: Recipe, pins: Sequence[DebPin], home: Path, say: Say) -> dict[str, Path]:
    """Return the .deb of each pin by its digest, downloading what is not here yet.

    Raises ImageError that names every package which the sources no longer have, or have with other bytes.
    """
    files = {pin.sha256: downloads.cached(home, pin.sha256) for pin in pins}
    missing = [pin for pin in pins if files[pin.sha256] is None]
    if missing:
        refresh(recipe, home, say)
        _refuse_moved(recipe, missing, home)
        say(f"downloading {len(missing)} Debian packages, {sum(pin.size for pin in missing) / 1e6:.1f} MB")
        _download(recipe, missing, home)
    return {pin.sha256: files[pin.sha256] or downloads.place(home, pin.sha256) for pin in pins}


def _refuse_moved(recipe: Recipe, pins: Sequence[DebPin], home: Path) -> None:
    found = _known(recipe, pins, home)
    problems = []
    for pin in pins:
        digests = found.get((pin.name, pin.version), set())
        if not digests:
            problems.append(f"{pin.name} {pin.version} is not to be had any more")
        elif pin.sha256 not in digests:
            problems.append(f"{pin.name} {pin.version} is pinned as {pin.sha256}, the mirror has {min(digests)}")
    _refuse(problems)


def _known(recipe: Recipe, pins: Sequence[DebPin], home: Path) -> dict[tuple[str, str], set[str]]:
    """Return the digests under which the sources know each pinned version."""
    config = str(_config(recipe, home, ()))
    names = sorted({pin.name for pin in pins})
    try:
        records = program(["apt-cache", "-c", config, "show", *names], "apt-cache show", writes=home)
    except ProgramFailed as failed:
        # It fails when one name is unknown, and still shows the others when asked one by one.
        if len(names) > 1:
            return {key: value for pin in pins for key, value in _known(recipe, [pin], home).items()}
        if "No packages found" in failed.message:
            return {}
        raise
    found: dict[tuple[str, str], set[str]] = {}
    for record in records.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in record.splitlines() if ": " in line and line[0] != " ")
        if "SHA256" in fields:
            found.setdefault((fields["Package"], fields["Version"]), set()).add(f"sha256:{fields['SHA256']}")
    return found


def _download(recipe: Recipe, pins: Sequence[DebPin], home: Path) -> None:
    with aside(downloads.folder(home)) as folder:
        wanted = [f"{pin.name}={pin.version}" for pin in pins]
        config = str(_config(recipe, home, ()))
        argv = ["apt-get", "-c", config, "-q", "download", *wanted]
        needed_bytes = sum(pin.size for pin in pins)
        program(argv, "apt-get download", folder=folder, writes=downloads.folder(home), needed_bytes=needed_bytes)
        got = {digest_of_file(path): path for path in folder.glob("*.deb")}
        _refuse([f"{pin.name} {pin.version}: no file with {pin.sha256}" for pin in pins if pin.sha256 not in got])
        for path in got.values():
            downloads.keep(home, path)


def _refuse(problems: list[str]) -> None:
    if problems:
        listing = "\n".join(f"  {problem}" for problem in problems)
        raise ImageError(f"this machine's apt sources do not have what is pinned:\n{listing}", hint=_RELOCK)


def _config(recipe: Recipe, home: Path, kept: Iterable[DebPin]) -> Path:
    """Write apt's settings into the state folder, and return their file."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise ImageError("building an image takes apt-get and dpkg-deb, and this machine lacks them")
    state = home.resolve() / "apt"
    config, preferences = state / "apt.conf", state / "preferences"
    with room(state, 0):
        for folder in ("lists/partial", "cache/archives/partial", "none"):
            (state / folder).mkdir(parents=True, exist_ok=True)
        (state / "status").touch()
        # Above 1000 a pin is taken even where that means an older version.
        pinned = (f"Package: {pin.name}\nPin: version {pin.version}\nPin-Priority: 1001\n" for pin in kept)
        preferences.write_text("\n".join(pinned))
        architecture = recipe.platform.partition("/")[2]
        config.write_text(_CONFIG.format(state=state, preferences=preferences, architecture=architecture))
    return config
