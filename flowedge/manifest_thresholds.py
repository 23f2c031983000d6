"""Define the manifest's records about thresholds: the limits that decide, and the history of their changes."""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeAlias

import msgspec

from flowedge.manifest_bounds import (
    Count,
    LogNfa,
    ManifestRecord,
    Moment,
    Name,
    Reason,
    Sha256,
    Share,
    Value,
)

HISTORY_LENGTH: Final = 100
"""The largest number of entries in the history of the thresholds."""

LARGEST_GRAPHS: Final = 100
"""The largest number of graphs that one entry of the history tells about."""

ThresholdMethod: TypeAlias = Literal["quantile", "target-fpr", "f1", "manual", "source"]
NfaForm: TypeAlias = Literal["tree", "block"]


class Threshold(ManifestRecord, frozen=True, kw_only=True):
    """One fitted threshold. A value above the threshold is anomalous.

    Attributes:
        value: The limit, in units of the score or, for a pixel threshold, of the anomaly map.
        method: The method of the fit.
        parameter: The quantile or the target false-alarm rate, where the method has one.
        images: The number of images of the fit, which is 0 for a manual threshold.
    """

    value: Value
    method: ThresholdMethod
    parameter: Share | None = None
    images: Count = 0


class NfaThreshold(ManifestRecord, frozen=True, kw_only=True):
    """The a-contrario decision. A region is anomalous where log10 of its number of false alarms is below a limit.

    Attributes:
        form: The form of the test, see ``flowedge.runtime.nfa``.
        log_nfa: The limit: log10 of the false alarms that are expected in an image. 0 stands for one false alarm.
    """

    form: NfaForm
    log_nfa: LogNfa = 0.0


class Thresholds(ManifestRecord, frozen=True, kw_only=True):
    """The thresholds of one precision. Where ``nfa`` is set, it decides in place of the other two."""

    image: Threshold | None = None
    pixel: Threshold | None = None
    nfa: NfaThreshold | None = None


class ThresholdChange(ManifestRecord, frozen=True, kw_only=True):
    """The thresholds of one graph before and after a change.

    Attributes:
        precision: The precision of the graph.
        before: The old thresholds. The value is None where the graph is new.
        after: The new thresholds.
    """

    precision: Name
    before: Thresholds | None
    after: Thresholds


class HistoryEntry(ManifestRecord, frozen=True, kw_only=True):
    """One change of the thresholds: who made it, when, why and from which images.

    Attributes:
        moment: The moment of the change in UTC, as ISO 8601.
        by: The user who made it, such as ``"ann@line-3"``.
        command: The command or the Python function that made it.
        flowedge_version: The version that made it.
        reason: The user's reason. The text is empty where the user gave none.
        images: The number of images of the fit, which is 0 for values that were set by hand.
        images_sha256: The SHA-256 of the images' own hashes, computed as in ``calibration.json``. The value is None
            where no images were used.
        changes: The changed graphs.
        merged: The number of changes that this entry stands for. An entry of more than one keeps the first old and the
            last new values, and moment, user, command and reason of the last change.
    """

    moment: Moment
    by: Name
    command: Name
    flowedge_version: Name
    reason: Reason = ""
    images: Count = 0
    images_sha256: Sha256 | None = None
    changes: Annotated[tuple[ThresholdChange, ...], msgspec.Meta(max_length=LARGEST_GRAPHS)]
    merged: Annotated[int, msgspec.Meta(ge=1, le=10**9)] = 1
