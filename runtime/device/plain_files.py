"""Open plain files without following links or waiting for pipes, and lock them between processes."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from flowedge.errors import EngineCacheError
from flowedge.progress import Reports


def plain_file(path: Path) -> BinaryIO:
    """Open a plain file for reading, and refuse a pipe or a device instead of waiting for it.

    Raises:
        OSError: The file is not there, cannot be read, or is a link, a pipe, a device or a folder.
    """
    return os.fdopen(_opened(path, os.O_RDONLY), "rb")


def _opened(path: Path, flags: int) -> int:
    """Open a plain file, and neither follow a link nor wait for a pipe or a device.

    Raises:
        OSError: The file cannot be opened, or is no plain file.
    """
    handle = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    if stat.S_ISREG(os.fstat(handle).st_mode):
        return handle
    os.close(handle)
    raise OSError(errno.EINVAL, "it is no plain file", str(path))


@contextlib.contextmanager
def lock_file(path: Path, reports: Reports) -> Iterator[None]:
    """Hold a lock that the kernel releases with the process, and delete its file at the end.

    Whoever waited for a file that was deleted meanwhile tries again with the new one.

    Raises:
        EngineCacheError: The file cannot be made, or something else has its name.
    """
    handle = -1
    try:
        while handle < 0:
            handle = _opened(path, os.O_RDWR | os.O_CREAT)
            _lock(handle, reports)
            if not _is_still(path, handle):
                os.close(handle)
                handle = -1
    except OSError as error:
        raise cannot_write(path, error) from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(handle)


def _lock(handle: int, reports: Reports) -> None:
    """Wait for the lock of an open file, which is closed where that is interrupted."""
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            reports.note("waiting for another process that builds this engine")
            fcntl.flock(handle, fcntl.LOCK_EX)
    except BaseException:
        os.close(handle)
        raise


def _is_still(path: Path, handle: int) -> bool:
    """Return True while the path still names the open file, which another process may have replaced."""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(handle))
    except FileNotFoundError:
        return False


def cannot_write(path: Path, error: OSError) -> EngineCacheError:
    """Make the error of a write that the system refused."""
    return EngineCacheError(
        f"the device cache cannot write {path}: {error.strerror}. Make room (flowedge cache clear), or name another "
        "folder with FLOWEDGE_CACHE_DIR."
    )
