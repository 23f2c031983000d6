"""Make and remove drafts: hidden folders in which a bundle is made before it gets its place.

A draft belongs to one process, which holds a lock (``flock``) on the file ``lock`` in it. A process that is killed
cannot remove its draft. The next process that makes a draft in the same folder removes the drafts whose lock is free. A
lock does not tell of processes of another machine on a network file system. So the name of a draft holds a mark of the
running kernel and one of the machine, and drafts with neither mark are never touched.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

PREFIX: Final = ".flowedge-draft-"
_LOCK: Final = "lock"
# The drafts of this process. An interruption may come between the making of a draft and its removal.
_own: set[Path] = set()


@contextlib.contextmanager
def draft_folder(parent: Path) -> Iterator[Path]:
    """Make a draft in a folder, and remove it at the end with all that is in it.

    Drafts that killed processes of this machine left in the folder are removed first.

    Args:
        parent: An existing folder that this process may write to.

    Yields:
        The draft's path. The draft holds only the file ``lock``, so a file made in it needs another name.

    Raises:
        OSError: The folder cannot be written.
    """
    remove_abandoned_drafts(parent)
    folder, lock = _new_draft(parent)
    try:
        yield folder
    finally:
        _remove(folder, lock)
        _own.discard(folder)


def remove_own_drafts() -> None:
    """Remove the drafts of this process that are left. An interrupted process calls this last."""
    while _own:
        shutil.rmtree(_own.pop(), ignore_errors=True)


def remove_abandoned_drafts(parent: Path) -> None:
    """Remove the abandoned drafts in a folder that belong to this user and this machine."""
    with contextlib.suppress(OSError), os.scandir(parent) as entries:
        for entry in entries:
            folder = Path(entry.path)
            if _may_be_abandoned(entry) and folder not in _own:
                with contextlib.suppress(OSError):
                    lock = _Lock(folder)
                    if lock.is_exclusive:
                        _remove(folder, lock)
                    else:
                        lock.close()


def _may_be_abandoned(entry: os.DirEntry[str]) -> bool:
    """Tell whether a folder's entry is a draft of this user and of this kernel or this machine."""
    if not entry.name.startswith(PREFIX):
        return False
    marks = entry.name.removeprefix(PREFIX).split("-")[:2]
    status = entry.stat(follow_symlinks=False)
    is_ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
    return is_ours and any(mark == own for mark, own in zip(marks, _marks(), strict=False))


def _new_draft(parent: Path) -> tuple[Path, _Lock]:
    """Make a draft and take its lock.

    The draft's path is noted among this process's drafts before the folder is made.
    """
    while True:
        folder = parent / (PREFIX + "-".join([*_marks(), secrets.token_hex(4)]))
        _own.add(folder)
        lock = None
        try:
            folder.mkdir(mode=0o700)
            # Another process may take the folder for an abandoned draft before the lock is taken.
            # A new draft is made then.
            with contextlib.suppress(FileNotFoundError):
                lock = _Lock(folder)
                if lock.is_held:
                    return folder, lock
        finally:
            if lock is None or not lock.is_held:
                _remove(folder, lock)
                _own.discard(folder)


def _remove(folder: Path, lock: _Lock | None) -> None:
    """Remove a draft under its lock. Network file systems keep the file's name until the lock is closed."""
    shutil.rmtree(folder, ignore_errors=True)
    if lock is not None:
        lock.close()
        with contextlib.suppress(OSError):
            folder.rmdir()


class _Lock:
    """The lock of one draft, taken without waiting.

    Attributes:
        is_exclusive: True when this process holds the lock. False where another process holds it or the file system
            has no locks.
        is_held: True when no other process may remove the draft, since the lock is held or there are no locks.
    """

    def __init__(self, folder: Path) -> None:
        """Open the draft's lock file and try to lock it.

        Raises:
            OSError: There is no such folder, or it cannot be written.
        """
        path = folder / _LOCK
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        self._descriptor = os.open(path, flags, 0o600)
        self.is_exclusive = self.is_held = False
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        except OSError:
            self.is_held = True
            return
        with contextlib.suppress(FileNotFoundError):
            self.is_exclusive = self.is_held = os.path.samestat(os.fstat(self._descriptor), os.stat(path))

    def close(self) -> None:
        """Release the lock."""
        os.close(self._descriptor)


@cache
def _marks() -> tuple[str, str]:
    """Return a mark of the running kernel (containers share it) and one of the machine (it outlasts a restart)."""
    machine = _read("/etc/machine-id") + os.uname().nodename
    return _short_hash(_read("/proc/sys/kernel/random/boot_id") or machine), _short_hash(machine)


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:8]
