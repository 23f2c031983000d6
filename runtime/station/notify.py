"""Tell the service manager that the station is ready, and keep its watchdog quiet while every stage moves.

Source: the manual pages sd_notify(3) and sd_watchdog_enabled(3) of systemd. The protocol is one datagram for
each message on the socket that ``NOTIFY_SOCKET`` names, so no library is needed.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Final

from flowedge.text import printable

_LOG: Final = logging.getLogger(__name__)
_UNWATCHED_LIMIT_S: Final = 30.0
_STATUS_LENGTH: Final = 512


class Notifier:
    """Send messages to the service manager that has started this process. Without one, every message is dropped.

    A message that cannot be sent is logged once and never raises, because a station must not stop for it.

    Args:
        environment: The variables ``NOTIFY_SOCKET``, ``WATCHDOG_USEC`` and ``WATCHDOG_PID``.

    Attributes:
        watchdog_s: The longest time in seconds between two signs of life. The time is 0 where the service manager
            expects none.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        # An address that begins with @ is in the kernel's abstract namespace.
        if self._address.startswith("@"):
            self._address = "\0" + self._address[1:]
        self._failed = False
        self.watchdog_s = _watchdog_of(environment)

    def ready(self, status: str = "") -> None:
        """Tell that the station has started. systemd waits for this message before it starts what depends on it."""
        self._send("READY=1", status)

    def status(self, text: str) -> None:
        """Show one line of text in ``systemctl status``."""
        self._send("", text)

    def alive(self, status: str = "") -> None:
        """Give a sign of life. Without one for ``watchdog_s`` seconds, systemd ends the process and starts it again."""
        self._send("WATCHDOG=1", status)

    def stopping(self, status: str = "") -> None:
        """Tell that the station is about to stop."""
        self._send("STOPPING=1", status)

    def _send(self, state: str, status: str) -> None:
        if not self._address:
            return
        # A line break in the status would begin a message of its own.
        lines = [state] * bool(state) + [f"STATUS={printable(status)[:_STATUS_LENGTH]}"] * bool(status)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                # A service manager that is too busy to read must not hold up the station.
                sender.setblocking(False)
                sender.sendto("\n".join(lines).encode(), self._address)
        except OSError as error:
            if not self._failed:
                _LOG.warning("The service manager's socket takes no message: %s", error)
            self._failed = True
        else:
            self._failed = False


def _watchdog_of(environment: Mapping[str, str]) -> float:
    """Return the time that the service manager allows between two signs of life, in seconds, or 0."""
    # The variables may have been inherited from a parent process, which then is the one that is watched.
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    try:
        return max(int(environment.get("WATCHDOG_USEC", "0")), 0) / 1e6
    except ValueError:
        return 0.0


class Watchdog:
    """Give signs of life for as long as no stage of the loop hangs in one piece of work.

    A stage that waits for a frame is healthy. A stage that has been busy with one frame for longer than ``limit_s``
    hangs, for instance in a driver. No sign of life is given then, and systemd starts the process again. The stacks of
    all threads are written to standard error before the process ends, so the log shows where it hung.

    Args:
        notifier: The connection to the service manager.
        status: A function that gives the line for ``systemctl status``, called with each sign of life.
        limit_s: The longest time in seconds that a stage may take for one piece of work. The default is the service
            manager's time, or 30 seconds without one.

    Example:
        >>> with Watchdog(Notifier()) as watchdog, watchdog.working("infer"):
        ...     pass
    """

    def __init__(
        self, notifier: Notifier, status: Callable[[], str] = str, *, limit_s: float | None = None
    ) -> None:
        self._notifier = notifier
        self._status = status
        self.limit_s = limit_s or notifier.watchdog_s or _UNWATCHED_LIMIT_S
        self._busy_since: dict[tuple[int, str], float] = {}
        self._reported: set[str] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Begin with the signs of life, where the service manager expects them."""
        if self._notifier.watchdog_s:
            # systemd ends a hanging process by SIGABRT, which Python answers with the stacks of all threads.
            with contextlib.suppress(ValueError, OSError):
                faulthandler.enable()
            self._thread.start()

    def stop(self) -> None:
        """End the signs of life."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    @contextlib.contextmanager
    def working(self, stage: str) -> Iterator[None]:
        """Mark that the calling thread is busy with one piece of work of a stage, such as ``"infer"``.

        The mark costs about a microsecond, so it may surround the work on each frame.
        """
        key = (threading.get_ident(), stage)
        self._busy_since[key] = time.monotonic()
        try:
            yield
        finally:
            self._busy_since.pop(key, None)

    def hanging(self) -> dict[str, float]:
        """Return the stages that have been busy for longer than the limit, with their time in seconds."""
        now = time.monotonic()
        # The other threads add and remove marks meanwhile, and a copy of a dictionary is made in one step.
        busy = self._busy_since.copy().items()
        return {stage: now - since for (_, stage), since in busy if now - since > self.limit_s}

    def _run(self) -> None:
        while not self._stop.wait(self._notifier.watchdog_s / 2):
            hanging = self.hanging()
            if not hanging:
                self._notifier.alive(self._status())
            for stage in hanging.keys() - self._reported:
                text = f"The stage {stage} has been busy with one frame for {hanging[stage]:.0f} s."
                _LOG.error("%s The watchdog gets no sign of life.", text)
                self._notifier.status(text)
            self._reported = set(hanging)
