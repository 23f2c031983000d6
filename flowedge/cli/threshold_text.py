"""Print thresholds, their operating points and the history of their changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from flowedge.cli.output import RESULTS, table
from flowedge.manifest import NfaThreshold, Threshold, Thresholds
from flowedge.manifest_thresholds import HistoryEntry
from flowedge.text import images_words

if TYPE_CHECKING:
    from flowedge.calibration.calibration_record import FittedGraph
    from flowedge.calibration.operating_points import CountedRate, OperatingPoint


def threshold_text(threshold: Threshold | None) -> str:
    """Return a threshold with the method of its fit."""
    if threshold is None:
        return "not fitted"
    if threshold.method == "manual":
        return f"{threshold.value:.6g} (set by hand)"
    parameter = "" if threshold.parameter is None else f" {threshold.parameter:g}"
    return f"{threshold.value:.6g} ({threshold.method}{parameter}, {images_words(threshold.images)})"


def nfa_text(threshold: NfaThreshold | None) -> str:
    """Return the limit of log NFA, or a dash where no limit is set."""
    return "-" if threshold is None else f"{threshold.form} log NFA < {threshold.log_nfa:g}"


def thresholds_text(thresholds: Thresholds | None) -> str:
    """Return all thresholds of one graph in one line."""
    if thresholds is None:
        return "no graph"
    parts = [
        f"{name} {threshold_text(threshold)}"
        for name, threshold in (("image", thresholds.image), ("pixel", thresholds.pixel))
        if threshold is not None
    ]
    if thresholds.nfa is not None:
        parts.append(nfa_text(thresholds.nfa))
    return ", ".join(parts) or "none"


def last_change_text(history: Sequence[HistoryEntry]) -> str:
    """Return how often the thresholds were changed, and the last change."""
    count = sum(entry.merged for entry in history)
    return f"{count} {'change' if count == 1 else 'changes'}, the last {entry_text(history[-1])}"


def entry_text(entry: HistoryEntry) -> str:
    """Return moment, author, command and reason of a change in one line."""
    reason = f": {entry.reason}" if entry.reason else ""
    images = ""
    if entry.images:
        images = f" on {images_words(entry.images)}"
        if entry.images_sha256 is not None:
            images += f" (sha256 {entry.images_sha256[:12]}…)"
    return f"{entry.moment} by {entry.by} with {entry.command}{images}{reason}"


def print_history(history: Sequence[HistoryEntry]) -> None:
    """Print every change of the thresholds, the oldest first, with the old and the new values."""
    for entry in history:
        merged = f" ({entry.merged} changes merged)" if entry.merged > 1 else ""
        RESULTS.print(f"{entry_text(entry)}{merged}", soft_wrap=True)
        for change in entry.changes:
            RESULTS.print(
                f"  {change.precision}: {thresholds_text(change.before)} → {thresholds_text(change.after)}",
                soft_wrap=True,
            )


def print_points(points: Mapping[str, Sequence[OperatingPoint]]) -> None:
    """Print the operating points of each precision, and below the table the commands that set them.

    Args:
        points: The points of each precision, with their commands.
    """
    with_defects = any(point.detections is not None for each in points.values() for point in each)
    columns = ["precision", "at", ">threshold", ">false alarms", ">95 % interval"]
    if with_defects:
        columns += [">missed", ">found", ">95 % interval"]
    rows = table(*columns, title="Thresholds to choose from")
    for precision, each in points.items():
        for point in each:
            cells = [precision, point.name, _limit_text(point), *_counted_cells(point.false_alarms)]
            if with_defects and point.detections is not None:
                found = point.detections
                missed = f"{found.total - found.hits} of {found.total}"
                cells += [missed, _percent(found.rate), _interval(found)]
            rows.add_row(*cells)
    RESULTS.print(rows)
    for precision, each in points.items():
        prefix = f"{precision}, " if len(points) > 1 else ""
        for point in each:
            if point.command:
                RESULTS.print(f"{prefix}{point.name}: {point.command}", soft_wrap=True)


def with_graph_commands(graphs: Sequence[FittedGraph], bundle: Path) -> tuple[FittedGraph, ...]:
    """Give the operating points of each fitted graph the commands that set them."""
    from flowedge.calibration.operating_points import with_commands

    return tuple(
        msgspec.structs.replace(
            graph,
            operating_points=with_commands(
                graph.operating_points, bundle, graph.precision, "the calibration"
            ),
        )
        for graph in graphs
    )


def print_fitted_points(graphs: Sequence[FittedGraph], bundle: Path) -> None:
    """Print the operating points of a fit, which are counted on the images that the thresholds were fitted on."""
    points = {
        graph.precision: graph.operating_points
        for graph in with_graph_commands(graphs, bundle)
        if graph.operating_points
    }
    if not points:
        return
    print_points(points)
    if any(point.detections is not None for each in points.values() for point in each):
        meaning = "so new images will show more errors"
    else:
        meaning = (
            "so the interval is not that of a count. It is that of the false-alarm rate which new images of good parts "
            "will show, as far as the number of images tells (order statistics)"
        )
    RESULTS.print(
        f"These images were seen in the fit, {meaning}. flowedge eval counts on other images.", soft_wrap=True
    )


def _limit_text(point: OperatingPoint) -> str:
    """Return the limit of an operating point."""
    if point.threshold is not None:
        return f"{point.threshold:.7g}"
    return f"log NFA < {point.log_nfa:.7g}"


def _counted_cells(counted: CountedRate) -> tuple[str, str]:
    return f"{counted.hits} of {counted.total}", _interval(counted)


def _interval(counted: CountedRate) -> str:
    return f"{100 * counted.low:.1f} to {100 * counted.high:.1f} %"


def _percent(rate: float | None) -> str:
    return "-" if rate is None else f"{100 * rate:.1f} %"
