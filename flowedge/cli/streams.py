"""Wrap the standard streams so that all text can be shown and a failure to write is noticed."""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import os
import sys
from collections.abc import Callable
from typing import Final, TextIO

OUTPUT_LOST: Final = 3
"""The exit status where standard output or standard error cannot be written."""

READER_GONE: Final = 141
"""The exit status where the reader of a pipe has closed it: 128 and the number of SIGPIPE, as a shell shows it."""

_IN_ASCII: Final = {"→": "->", "…": "...", "²": "^2"}  # the characters of the tables that are not ASCII
_ESCAPING: Final = "flowedge.escaping"


class _OutputLostError(Exception):
    """Standard output cannot be written, so the command has nobody to work for."""


class _Stream(io.TextIOBase):
    """A standard stream that escapes what its encoding lacks, and that keeps its first failure.

    Attributes:
        problem: The first error in writing, or None as long as there was no error.
        last: The text that was written last, also where it did not arrive.
    """

    def __init__(self, stream: TextIO, *, is_needed: bool) -> None:
        """Wrap a stream.

        Args:
            stream: The stream to write to.
            is_needed: True when a failure ends the command. False when text is dropped from the failure on.
        """
        self.problem: OSError | None = None
        self.last = ""
        self._stream = stream
        self._is_needed = is_needed

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self._stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.last = text.strip() or self.last
        if self.problem is None:
            try:
                self._stream.write(self._encodable(text))
            except OSError as error:
                self._fail(error)
        return len(text)

    def flush(self) -> None:
        if self.problem is None:
            try:
                self._stream.flush()
            except OSError as error:
                self._fail(error)

    def _encodable(self, text: str) -> str:
        try:
            text.encode(self.encoding)
        except UnicodeEncodeError:
            return text.encode(self.encoding, _ESCAPING).decode(self.encoding)
        return text

    def _fail(self, error: OSError) -> None:
        self.problem = error
        # The text that the stream still holds is discarded. Otherwise the interpreter would fail on it when it ends.
        with contextlib.suppress(OSError), open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), self._stream.fileno())
        if self._is_needed:
            raise _OutputLostError from error


def on_standard_streams(command: Callable[[], int]) -> int:
    """Run a command on streams that escape what they cannot encode, and return the exit status.

    Args:
        command: A function that prints through ``sys.stdout`` and ``sys.stderr`` and returns its exit status.

    Returns:
        The command's status, ``READER_GONE`` where the other end of a pipe was closed, or ``OUTPUT_LOST`` where a
        stream is closed or cannot be written. In the last case one line on the other stream gives the reason.
    """
    _occupy_closed_descriptors()
    closed = [name for name, one in (("output", sys.stdout), ("error", sys.stderr)) if one is None]
    if closed:
        with contextlib.suppress(OSError):
            _say(
                sys.stdout or sys.stderr,
                f"standard {closed[0]} is closed. Redirect it, for instance to /dev/null.",
            )
        return OUTPUT_LOST
    out, err = _Stream(sys.stdout, is_needed=True), _Stream(sys.stderr, is_needed=False)
    status = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        with contextlib.suppress(_OutputLostError):
            status = command()
            out.flush()
        err.flush()
        for name, stream, other in (("output", out, err), ("error", err, out)):
            if stream.problem is None:
                continue
            if stream.problem.errno == errno.EPIPE:
                return READER_GONE
            line = f"standard {name} cannot be written: {stream.problem.strerror}"
            if stream is err:
                line += f". Its last line was: {' '.join(err.last.split())}"
            with contextlib.suppress(_OutputLostError):
                _say(other, line)
            return OUTPUT_LOST
    return status


def _say(stream: TextIO | _Stream | None, line: str) -> None:
    if stream is not None:
        stream.write(f"flowedge: {line}\n")
        stream.flush()


def _occupy_closed_descriptors() -> None:
    """Open the null device in place of closed standard streams, since libraries print to their numbers anyway."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one


def _escaped(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    return "".join(
        _IN_ASCII.get(one) or one.encode("ascii", "backslashreplace").decode() for one in text
    ), error.end


codecs.register_error(_ESCAPING, _escaped)
