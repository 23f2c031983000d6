"""Open and write the files that a user names."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Final

_LOG: Final = logging.getLogger(__name__)

_KINDS: Final = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def open_regular_file(path: str | os.PathLike[str], *, follow_links: bool = True) -> BinaryIO:
    """Open a regular file for reading, and refuse everything else at once.

    A named pipe would wait for a writer, and a device may have no end. Neither is opened.

    Args:
        path: The file.
        follow_links: Open the file that a symbolic link leads to. With False a link is refused.

    Returns:
        The file, at its beginning.

    Raises:
        IsADirectoryError: The path is a folder.
        OSError: The path is no regular file, or the system refuses. ``strerror`` completes "PATH cannot be read: ".
    """
    # Opening a device can change it (a tape rewinds), so the first look comes before the opening.
    _check_regular(path, os.stat(path, follow_symlinks=follow_links).st_mode)
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
    descriptor = os.open(path, flags if follow_links else flags | os.O_NOFOLLOW)
    try:
        # Another process may have put something else in the file's place since the first look.
        _check_regular(path, os.fstat(descriptor).st_mode)
    except OSError:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


def read_at_most(
    path: Path, most: int, *, kind: str, advice: str, error: Callable[[str], Exception]
) -> bytes:
    """Read a regular file that a user names and that must be small.

    Args:
        path: The file.
        most: The most bytes that it may have.
        kind: The kind of file in words, such as ``a settings file``.
        advice: The next step where the file cannot be read, a sentence.
        error: Makes the error of a message.

    Raises:
        Exception: What ``error`` makes, where the file cannot be read or is larger.
    """
    try:
        with open_regular_file(path) as opened:
            content = opened.read(most + 1)
    except OSError as reason:
        raise error(f"{path} cannot be read: {reason.strerror}. {advice}") from reason
    if len(content) > most:
        raise error(f"{path} has more than {most} bytes, the most that {kind} may have.")
    return content


def why_unreadable(path: Path, error: OSError) -> str:
    """Return the reason and the next step as the end of a message that begins with the file's name.

    Args:
        path: The file.
        error: The error of its opening.
    """
    if isinstance(error, FileNotFoundError):
        return "the file does not exist. Check the path."
    if isinstance(error, IsADirectoryError):
        if os.path.lexists(path / "manifest.json"):
            return "it is a bundle. Give the checkpoint that it was made from."
        return "it is a folder. Give the checkpoint file inside it."
    if isinstance(error, PermissionError):
        return "it may not be read by this user. Change its permissions."
    return f"it cannot be read: {error.strerror}. Check the path."


def write_whole_file(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees all of it or nothing, whatever interrupts the writer.

    Args:
        path: The file, whose folder must exist. A regular file that is there is replaced, and a pipe or a device is
            written to.
        content: The whole content.

    Raises:
        OSError: The system refuses. The old file is then untouched.
    """
    if path.exists() and not path.is_file():
        path.write_bytes(content)
        return
    target = Path(os.path.realpath(path))  # a link stays a link
    partial = target.with_name(f".{secrets.token_hex(8)}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(target)
        _LOG.info("wrote %s (%d bytes)", path, len(content))
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def existing_folder(path: Path) -> Path:
    """Return the path where it exists, or else the nearest folder around it that does."""
    return next(one for one in (path, *path.absolute().parents) if one.exists())


@contextlib.contextmanager
def utf8_name(path: str | os.PathLike[str]) -> Iterator[str]:
    """Give a name of a file to a library that accepts only UTF-8.

    Linux has a second name for each open folder. Files beside the named file are found under their folder's second
    name as well.

    Args:
        path: The file, whose own name is UTF-8 and whose folder may have any name.

    Yields:
        The path itself where it is UTF-8, else its second name, which holds until the end of the ``with`` block.
    """
    text = os.fspath(path)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        folder, name = os.path.split(text)
        descriptor = os.open(folder or os.curdir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield f"/proc/self/fd/{descriptor}/{name}"
        finally:
            os.close(descriptor)
    else:
        yield text


def _check_regular(path: str | os.PathLike[str], mode: int) -> None:
    """Raise OSError unless the mode is a regular file's."""
    if stat.S_ISREG(mode):
        return
    kind = next((words for is_kind, words in _KINDS if is_kind(mode)), "a symbolic link")
    code = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
    raise OSError(code, f"it is {kind}, not a file", os.fspath(path))
