"""End a command on a signal: the work is unwound, nothing half-written stays, and the status names the signal."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Final

from flowedge.drafts import remove_own_drafts

_ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_SECONDS_TO_END: Final = 5


class EndedBySignal(BaseException):
    """The command is to end. The code that catches this prints how far the work came, and raises it again."""

    def __init__(self, number: int) -> None:
        """Keep the signal's number."""
        super().__init__(number)
        self.number = number

    def __str__(self) -> str:
        """Return the signal's name."""
        return signal.Signals(self.number).name


class _State:
    """Hold the number of the first signal, and whether further signals are only noted."""

    number: int | None = None
    is_tidying = False


def raise_on_signals() -> None:
    """Let Ctrl-C, SIGTERM, SIGHUP and SIGQUIT raise `EndedBySignal` in the main thread.

    A signal that is ignored stays ignored, so that ``nohup`` and background jobs of a script keep their meaning.
    """
    _State.number, _State.is_tidying = None, False
    for number in _ENDING:
        if signal.getsignal(number) != signal.SIG_IGN:
            with contextlib.suppress(ValueError):  # not in the main thread
                signal.signal(number, _handle)


@contextlib.contextmanager
def call_on_signals(ask_to_end: Callable[[], None]) -> Iterator[None]:
    """Let the signals that end a command ask for its end instead, for a command that ends in good order by itself.

    A second signal raises `EndedBySignal`.

    Args:
        ask_to_end: A function that returns at once.
    """

    def ask(number: int, frame: FrameType | None) -> None:
        raise_on_signals()
        ask_to_end()

    replaced = [number for number in _ENDING if signal.getsignal(number) == _handle]
    for number in replaced:
        signal.signal(number, ask)
    try:
        yield
    finally:
        for number in replaced:
            signal.signal(number, _handle)


def raise_if_ended() -> None:
    """Raise `EndedBySignal` once more where it was raised inside a library that caught it."""
    if _State.number is not None and not _State.is_tidying:
        raise EndedBySignal(_State.number)


def begin_to_tidy() -> None:
    """Ignore further signals from here on, so that the work is tidied up to the end."""
    _State.is_tidying = True


def end_at_once_on_signals() -> None:
    """Let signals end the process at once, without Python, since there is nothing left to tidy up."""
    signal.alarm(0)
    for number in _ENDING:
        if signal.getsignal(number) == _handle:
            signal.signal(number, signal.SIG_DFL)


def _handle(number: int, frame: FrameType | None) -> None:
    """Raise `EndedBySignal` at the place where the main thread is."""
    if _State.number is None:
        _State.number = number
        signal.signal(signal.SIGALRM, _give_up)
        signal.alarm(_SECONDS_TO_END)
    if not _State.is_tidying:
        raise EndedBySignal(number)


def _give_up(number: int, frame: FrameType | None) -> None:
    """End the process where unwinding takes too long: nobody reads the output, or a library caught the exception."""
    remove_own_drafts()
    os._exit(128 + (_State.number or number))
