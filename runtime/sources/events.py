"""Define the events of a source, which tell that a camera is lost or is back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceEvent:
    """An event of a source.

    Attributes:
        kind: The kind of the event.
        text: The event in words, without passwords.
        data: Numbers and names that belong to the event.
    """

    kind: Literal["source_lost", "source_back", "trigger_lost", "trigger_back", "trigger_refused"]
    text: str
    data: Mapping[str, str | int | float] = field(default_factory=dict)


Tell: TypeAlias = Callable[[SourceEvent], None]
"""A function that takes the events of a source. Threads of the source call it."""

Seen: TypeAlias = Callable[[str, str], bool]
"""A function that takes the id and the version of a file's frame, and returns True for one that has been judged."""


def ignore(event: SourceEvent) -> None:
    """Take an event and do nothing, for programs that follow the frames alone."""


def nothing_seen(frame_id: str, version: str) -> bool:
    """Return False, for programs that keep no journal of what they have judged."""
    return False
