"""Write the history of a bundle's thresholds: who changed them, when, why, from which images, and from what to what."""

from __future__ import annotations

import contextlib
import getpass
import os
import socket
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import msgspec

from flowedge.clock import utc_now
from flowedge.errors import CalibrationError
from flowedge.manifest import Manifest, Thresholds
from flowedge.manifest_bounds import LONGEST_NAME, LONGEST_REASON
from flowedge.manifest_thresholds import HISTORY_LENGTH, HistoryEntry, ThresholdChange
from flowedge.text import printable
from flowedge.version import __version__


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeOrigin:
    """Names the author of a change of thresholds, for the bundle's history.

    Attributes:
        command: The command or the function that makes the change.
        by: The author. The value is None for the user and the host of this process, such as ``"ann@line-3"``.
        reason: The author's reason, at most 1000 characters.

    Raises:
        CalibrationError: A text is too long, or ``by`` is empty.
    """

    command: str = "flowedge.calibration"
    by: str | None = None
    reason: str = ""

    def __post_init__(self) -> None:
        if self.by is not None and not 0 < len(self.by) <= LONGEST_NAME:
            raise CalibrationError(
                f"the name of the author has 1 to {LONGEST_NAME} characters, got {len(self.by)}. Give a shorter name."
            )
        if len(self.reason) > LONGEST_REASON:
            raise CalibrationError(
                f"the reason has at most {LONGEST_REASON} characters, got {len(self.reason)}. Give a shorter one."
            )


def with_history(
    before: Manifest,
    after: Manifest,
    origin: ChangeOrigin,
    *,
    chosen: Collection[str] = (),
    images: int = 0,
    images_sha256: str | None = None,
) -> Manifest:
    """Return a manifest with one more entry in the history of its thresholds.

    The entry lists the graphs whose thresholds changed, and those whose thresholds were chosen anew and came out equal.
    Without such graphs the history stays as it was. A history that is full merges its two oldest entries, so a change
    is never refused and the oldest values stay known.

    Args:
        before: The manifest of the version that is replaced. Its history is continued.
        after: The manifest of the new version.
        origin: The author of the change.
        chosen: The precisions whose thresholds were fitted or set.
        images: The number of images that the thresholds were fitted on.
        images_sha256: The hash of these images. The value is None without images.
    """
    old = {graph.precision: graph.thresholds for graph in before.graphs}
    changes = tuple(
        ThresholdChange(precision=graph.precision, before=old.get(graph.precision), after=graph.thresholds)
        for graph in after.graphs
        if graph.precision in chosen or graph.thresholds != old.get(graph.precision, Thresholds())
    )
    history = before.threshold_history
    if changes:
        entry = HistoryEntry(
            moment=utc_now().isoformat(),
            by=_utf8(origin.by or _user_and_host(), LONGEST_NAME),
            command=origin.command,
            flowedge_version=__version__,
            reason=_utf8(origin.reason, LONGEST_REASON),
            images=images,
            images_sha256=images_sha256,
            changes=changes,
        )
        history = _bounded((*history, entry))
    return msgspec.structs.replace(after, threshold_history=history)


def _bounded(entries: tuple[HistoryEntry, ...]) -> tuple[HistoryEntry, ...]:
    """Merge the oldest entries until the history has its largest length."""
    while len(entries) > HISTORY_LENGTH:
        entries = (_merged(entries[0], entries[1]), *entries[2:])
    return entries


def _merged(older: HistoryEntry, newer: HistoryEntry) -> HistoryEntry:
    """Return one entry with the old values of the first and the new values of the second."""
    return msgspec.structs.replace(
        newer,
        changes=_merged_changes((*older.changes, *newer.changes)),
        merged=older.merged + newer.merged,
    )


def _merged_changes(changes: Sequence[ThresholdChange]) -> tuple[ThresholdChange, ...]:
    merged: dict[str, ThresholdChange] = {}
    for change in changes:
        first = merged.get(change.precision, change)
        merged[change.precision] = msgspec.structs.replace(first, after=change.after)
    return tuple(merged.values())


def _utf8(text: str, length: int) -> str:
    """Return a text with the bytes of a command line that are no UTF-8 shown escaped, cut to a length."""
    return text.encode("utf-8", "backslashreplace").decode()[:length]


def _user_and_host() -> str:
    """Return the user and the host of this process, such as ``"ann@line-3"``."""
    user = f"uid {os.getuid()}"
    with contextlib.suppress(KeyError, OSError):  # a container may run as a user that has no name
        user = getpass.getuser()
    return printable(f"{user}@{socket.gethostname()}")
