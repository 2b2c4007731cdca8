"""What the process that speaks to Weights & Biases may know of the user's environment: the key, and the way out."""

import os
import sys
from collections.abc import Mapping
from netrc import NetrcParseError, netrc
from pathlib import Path
from urllib.parse import urlsplit

_SERVER = "https://api.wandb.ai"
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")
_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_PASSED = ("PATH", "TMPDIR", *_PROXIES, *_CERTIFICATES)


def key_of(environment: Mapping[str, str]) -> str | None:
    """Return the key of W&B's server: from the environment, or from where `wandb login` keeps it."""
    if key := environment.get("WANDB_API_KEY"):
        return key
    path = environment.get("NETRC") or f"{environment.get('HOME', '')}/.netrc"
    try:
        login = netrc(path).authenticators(urlsplit(_server(environment)).hostname or "")
    except (OSError, NetrcParseError):
        return None
    return login[2] if login else None


def child_environment(environment: Mapping[str, str], folder: Path, key: str | None) -> dict[str, str]:
    """Return the whole environment of the process that logs; W&B's own files go below a folder."""
    return {
        **{name: environment[name] for name in _PASSED if name in environment},
        **({"WANDB_API_KEY": key} if key else {}),
        **{name: str(folder / "cache") for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR")},
        "HOME": str(folder),
        "LC_ALL": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
        # The child finds what this process finds, this very xrun first, however both were installed.
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, sys.path)]),
        "WANDB_BASE_URL": _server(environment),
    }


def _server(environment: Mapping[str, str]) -> str:
    return environment.get("WANDB_BASE_URL") or _SERVER
