"""A clone of this repository as a new user has it: a folder, a home and an environment of their own, and no engine."""

import os
import pwd
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class BareMachine:
    """Somebody's clone."""

    folder: Path
    user: str
    environment: Mapping[str, str]

    def bash(self, script: str, *, check: bool = True, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a script in the clone as its owner, with nothing of the tests' own environment."""
        settings = [f"{name}={value}" for name, value in {**self.environment, **variables}.items()]
        become = [] if self.user == "root" else ["runuser", "-u", self.user, "--"]
        ran = subprocess.run(
            [*become, "env", "-i", *settings, "bash", "-euo", "pipefail", "-c", script],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0 or not check, f"{script}\n{ran.stdout}\n{ran.stderr}"
        return ran

    def xrun(self, *words: str, check: bool = True, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run xrun in the clone."""
        quoted = " ".join(f"'{word}'" for word in words)
        return self.bash(f". .venv/bin/activate && xrun {quoted}", check=check, **variables)


def bare_machine(home: Path, user: str) -> BareMachine:
    """Clone this repository, with what is not committed yet, into a new home."""
    folder = home / "xrun"
    for name in subprocess.check_output(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, text=True).split(
        "\n"
    ):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    if user != "root":
        subprocess.run(["chown", "-R", f"{user}:", str(home)], check=True)
    return BareMachine(folder=folder, user=user, environment=_environment(home))


def _environment(home: Path) -> dict[str, str]:
    """Return what a login gives: a path, a home, and the machine's own pip settings. No daemon is in sight."""
    machine = {name: value for name, value in os.environ.items() if name.startswith("PIP_") or name.endswith("_proxy")}
    return {
        **_pip_settings(),
        **machine,
        "DOCKER_HOST": "unix:///nowhere/docker.sock",
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    }


def _pip_settings() -> dict[str, str]:
    """Return root's pip settings as variables, as another user cannot read root's files."""
    listed = subprocess.check_output([sys.executable, "-m", "pip", "config", "list"], text=True)
    settings = re.findall(r"^global\.([\w-]+)='(.*)'$", listed, re.MULTILINE)
    return {f"PIP_{name.replace('-', '_').upper()}": value for name, value in settings}


def normal_user(name: str) -> str:
    """Have a user without privileges."""
    try:
        pwd.getpwnam(name)
    except KeyError:
        subprocess.run(["useradd", "--create-home", name], check=True)
    return name


def readme_block(number: int) -> str:
    """Return the README's nth `sh` code block."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    return str(blocks[number - 1])


def readme_fingerprint() -> str:
    """Return the fingerprint that the README promises everybody."""
    return str(re.findall(r"sha256:[0-9a-f]{64}", (ROOT / "README.md").read_text())[0])


def fingerprint_of(stdout: str) -> str:
    """Return the fingerprint that xrun printed."""
    return str(re.findall(r"^fingerprint +(sha256:[0-9a-f]{64})$", stdout, re.MULTILINE)[0])
