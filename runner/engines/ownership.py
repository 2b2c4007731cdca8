"""Giving the folders that a container may write to the user it runs as, and taking them back."""

import os
from collections.abc import Iterable
from pathlib import Path


def give(folders: Iterable[Path], uid: int, gid: int) -> None:
    """Make a user the owner of folders and all in them; links are not followed. Only for root."""
    for folder in folders:
        os.chown(folder, uid, gid, follow_symlinks=False)
        for _, names, files, folder_fd in os.fwalk(folder):
            for name in (*names, *files):
                os.chown(name, uid, gid, dir_fd=folder_fd, follow_symlinks=False)
