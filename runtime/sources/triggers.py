"""Pair the messages that name a part with the frames of a source.

A message is paired with the next frame that is taken after it, in the order of the messages. A part whose frame does
not come in time gets a frame with a problem, so that no part is without a record. Where frames were lost while several
parts waited, each of these parts gets one, since no part may have the picture of another. A frame for which no part
waits is inspected without a part, or is left out where the settings say so.
"""

from __future__ import annotations

import collections
import contextlib
import importlib
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Final, NamedTuple, Protocol, cast

import numpy as np

from flowedge.errors import ImageError
from flowedge.runtime.protocols import Frame, Source
from flowedge.runtime.sources.events import SourceEvent
from flowedge.runtime.sources.live import Fires, LiveSource
from flowedge.runtime.sources.opening import Opening
from flowedge.runtime.sources.settings import SourceSettings, TriggerSettings
from flowedge.text import printable

_LOG: Final = logging.getLogger(__name__)

LONGEST_PART: Final = 100
"""The most characters of the id of a part."""

_READY: Final = 4  # frames that wait for the caller
_MOST_BEHIND: Final = 1000  # frames that wait for the caller before further parts are refused
_END_S: Final = 1.0
_CLOSED: Final = "the inspection stops"
_TOLD_EVERY_S: Final = 1.0  # refused messages are told at most so often, since anybody may send them

TRIGGERS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "TcpTrigger": "flowedge.runtime.sources.tcp_trigger",
        "MqttTrigger": "flowedge.runtime.sources.mqtt_trigger",
        "ModbusTrigger": "flowedge.runtime.sources.modbus_trigger",
    }
)
"""The file of each kind of trigger that listens, by the name of its settings."""


class Take(Protocol):
    """A function that takes the text of a message."""

    def __call__(self, text: bytes | str, /) -> str:
        """Take the id of a part, and return the reason where it is refused, or an empty text."""
        ...


class Listener(Protocol):
    """A part that waits for messages in a thread of its own."""

    def close(self) -> None:
        """Stop listening."""
        ...


class _ListenerFile(Protocol):
    """The file of one kind of trigger."""

    def listen(self, settings: TriggerSettings, take: Take, opening: Opening) -> Listener:
        """Begin to listen."""
        ...


class _Part(NamedTuple):
    """A part that waits for its frame, which is the next one after a time of the monotonic clock."""

    name: str
    due_ns: int
    number: int


class Triggered:
    """A source whose frames have the ids of parts."""

    def __init__(self, source: Source, opening: Opening, trigger: TriggerSettings) -> None:
        """Listen for messages from now on, and take frames once somebody iterates.

        Raises:
            SourceError: The port is in use, or a message cannot fire this source.
            MissingPackageError: The package that listens is not installed.
        """
        self._source = source
        self._opening = opening
        self._settings = trigger
        self._change = threading.Condition()
        self._parts: collections.deque[_Part] = collections.deque()
        self._ready: collections.deque[Frame] = collections.deque()
        self._arrivals: collections.deque[int] = collections.deque()
        self._count = 0
        self._skipped_losses = 0
        self._refused = 0
        self._told_ns = 0
        self._ended = self._closed = False
        self._pump: threading.Thread | None = None
        self._failure: Exception | None = None
        self._listener: Listener | None = None
        if file := TRIGGERS.get(type(trigger).__name__):
            module = cast(_ListenerFile, importlib.import_module(file))
            self._listener = module.listen(trigger, self.trigger, opening)

    def trigger(self, part: bytes | str) -> str:
        """Let a part wait for the next frame. Any thread may call it.

        Args:
            part: The id of the part: printable text of at most `LONGEST_PART` characters, as text or as UTF-8.

        Returns:
            The reason where the message is refused. The text is empty where it is taken.
        """
        now = time.monotonic_ns()
        name, reason = _checked(part)
        with self._change:
            while self._arrivals and self._arrivals[0] < now - 1_000_000_000:
                self._arrivals.popleft()
            if not reason and self._closed:
                reason = _CLOSED
            if not reason and len(self._arrivals) >= self._settings.per_second:
                reason = f"more than {self._settings.per_second} messages came in a second"
            if not reason and len(self._parts) >= self._settings.queue:
                reason = f"{self._settings.queue} parts already wait for their frames"
            if not reason and len(self._ready) >= _MOST_BEHIND:
                reason = "the inspection stands still"
            if not reason:
                self._count += 1
                self._arrivals.append(now)
                due = now + int(self._settings.delay_s * 1e9)
                self._parts.append(_Part(name, due, self._count))
                self._change.notify_all()
            else:
                self._refused += 1
        if reason:
            self._tell_refused(name, reason, now)
        elif self._settings.fires and isinstance(self._source, Fires):
            try:
                self._source.fire()
            except Exception as error:
                # The part gets a record without a picture, and the thread that listens goes on.
                text = printable(str(error) or type(error).__name__)
                _LOG.warning("%s was not fired for part %s: %s", self._opening.name, name, text)
        return reason

    def frames(self) -> Iterator[Frame]:
        """Give the frames of the source with the ids of their parts, until the source ends or is closed.

        After a failure of the source, another iteration takes its frames again.
        """
        self._ended, self._failure = False, None
        self._pump = threading.Thread(target=self._take_frames, name="flowedge trigger", daemon=True)
        self._pump.start()
        while True:
            with self._change:
                while not (self._ready or self._closed or (self._ended and not self._parts)):
                    left = self._next_overdue()
                    if left is not None and left <= 0:
                        self._give_up(self._parts.popleft())
                        break
                    self._change.wait(left)
                if self._closed:
                    while self._parts:
                        self._give_up(self._parts.popleft(), _CLOSED)
                if not self._ready:
                    if self._failure is not None and not self._closed:
                        raise self._failure
                    return
                frame = self._ready.popleft()
                self._change.notify_all()
            yield frame

    def close(self) -> None:
        """Stop listening, close the source and end the iteration. A part that waits still gets its frame."""
        with self._change:
            self._closed = True
            self._change.notify_all()
        if self._listener is not None:
            self._listener.close()
        self._source.close()
        if self._pump is not None and self._pump is not threading.current_thread():
            self._pump.join(_END_S)

    def _take_frames(self) -> None:
        """Take the frames of the source, and pair each with the part that has waited longest.

        A camera does not wait. Its frames are paired as they come, since a part would get the picture of another one
        if its own had been dropped before.
        """
        is_live = isinstance(self._source, LiveSource)
        try:
            for frame in self._source.frames():
                with self._change:
                    if is_live:
                        self._make_room()
                    else:
                        self._change.wait_for(lambda: len(self._ready) < _READY or self._closed)
                    if self._closed:
                        return
                    self._pair(frame)
                    self._change.notify_all()
        except Exception as error:
            self._failure = error
        finally:
            with self._change:
                self._ended = True
                self._change.notify_all()

    def _make_room(self) -> None:
        """Drop the oldest frame without a part, or else the pixels of the oldest one that has them."""
        if sum(frame.part is None for frame in self._ready) >= _READY:
            place = next(place for place, frame in enumerate(self._ready) if frame.part is None)
            dropped = self._ready[place]
            del self._ready[place]
            self._add_losses(place, dropped.dropped_before + 1)
        held = [place for place, frame in enumerate(self._ready) if frame.pixels.size]
        if len(held) >= _READY + self._settings.queue:
            frame = self._ready[held[0]]
            problem = (
                f"{frame.id} was dropped, since its part waited while the frames before it were inspected"
            )
            # A view of no pixels would keep all of them.
            nothing = np.zeros((0, 0, 3), np.uint8)
            self._ready[held[0]] = replace(frame, pixels=nothing, problem=problem)

    def _add_losses(self, place: int, losses: int) -> None:
        """Count lost frames before the frame at a place, or before the next one to come."""
        if place < len(self._ready):
            frame = self._ready[place]
            self._ready[place] = replace(frame, dropped_before=frame.dropped_before + losses)
        else:
            self._skipped_losses += losses

    def _pair(self, frame: Frame) -> None:
        taken_ns = frame.monotonic_ns or time.monotonic_ns()
        wait_ns = int(self._settings.wait_s * 1e9)
        while self._parts and self._parts[0].due_ns + wait_ns < taken_ns:
            self._give_up(self._parts.popleft())
        due = sum(part.due_ns <= taken_ns for part in self._parts)
        if frame.dropped_before and due > 1:
            # The lost frame may be that of the first part, whose place this frame would take.
            for _ in range(due):
                self._give_up(self._parts.popleft(), "frames were lost, and nobody knows whose this one is")
        losses, self._skipped_losses = frame.dropped_before + self._skipped_losses, 0
        if self._parts and self._parts[0].due_ns <= taken_ns:
            part = self._parts.popleft().name
            self._ready.append(replace(frame, part=part, dropped_before=losses))
        elif self._settings.untriggered == "inspect":
            self._ready.append(replace(frame, dropped_before=losses))
        else:
            self._skipped_losses = losses

    def _next_overdue(self) -> float | None:
        """Return the time until the next part has waited too long. The value is None where none waits."""
        if not self._parts:
            return None
        if self._ended:
            return 0.0
        return self._parts[0].due_ns / 1e9 + self._settings.wait_s - time.monotonic()

    def _give_up(self, part: _Part, reason: str = "") -> None:
        """Give a frame with a problem for a part whose frame does not come."""
        if not reason:
            reason = (
                "the source has ended" if self._ended else f"none came within {self._settings.wait_s:g} s"
            )

        def pixels() -> None:
            raise ImageError(f"stands for the frame of part {part.name}, which is missing: {reason}")

        frame = self._opening.frame(
            f"{self._opening.name}#trigger-{part.number}",
            pixels,  # type: ignore[arg-type]
            monotonic_ns=time.monotonic_ns(),
        )
        self._ready.append(replace(frame, part=part.name))

    def _tell_refused(self, name: str, reason: str, now: int) -> None:
        with self._change:
            if now - self._told_ns < _TOLD_EVERY_S * 1e9:
                return
            self._told_ns, refused, self._refused = now, self._refused, 0
        self._opening.tell(
            SourceEvent(
                kind="trigger_refused",
                text=f"a message for {self._opening.name} was refused: {reason}",
                data={"part": name[:LONGEST_PART], "refused": refused},
            )
        )


def with_trigger(source: Source, opening: Opening, settings: SourceSettings) -> Source:
    """Return the source with its trigger, or the source itself where the settings have none."""
    if settings.trigger is None:
        return source
    with contextlib.ExitStack() as stack:
        stack.callback(source.close)
        triggered = Triggered(source, opening, settings.trigger)
        stack.pop_all()
    return triggered


def _checked(part: bytes | str) -> tuple[str, str]:
    """Return the id of a part in printable words, and the reason where it is refused."""
    if len(part) > 4 * LONGEST_PART:
        return "", f"the id of a part has more than {LONGEST_PART} characters"
    text = part.decode("utf-8", "surrogateescape") if isinstance(part, bytes) else part
    text = text.strip()
    if not text:
        return "", "the id of a part is empty"
    if len(text) > LONGEST_PART:
        return "", f"the id of a part has more than {LONGEST_PART} characters"
    if not text.isprintable():
        return printable(text), "the id of a part has characters that cannot be printed, or is no UTF-8"
    return text, ""
