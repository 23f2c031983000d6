"""Declare the options of the commands that add precisions, and print what their gates found."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, TypeAlias

import typer

from flowedge.cli import completion
from flowedge.cli.output import MESSAGES, PROBLEMS, RESULTS, number, table
from flowedge.cli.threshold_text import print_fitted_points
from flowedge.errors import FlowEdgeError
from flowedge.packages import explain_missing

if TYPE_CHECKING:
    from flowedge.calibration.calibration_record import CalibrationRecord, PrecisionReport, PruningFacts
    from flowedge.calibration.gate_report import GateLimits, GateReport
    from flowedge.calibration.precision import PrecisionRequest
    from flowedge.calibration.precision.precision_request import Prune
    from flowedge.manifest import ScoreMaxima

_CORRELATIONS: Final = ("map_correlation", "rank_agreement")
_UP_TO_ONE: Final = (*_CORRELATIONS, "quantile")

Fp16: TypeAlias = Annotated[bool, typer.Option("--fp16", help="Add a float16 graph.")]
Bf16: TypeAlias = Annotated[
    bool,
    typer.Option("--bf16", help="Add a bfloat16 graph, for GPUs and, with OpenVINO, for recent Intel CPUs."),
]
Int8: TypeAlias = Annotated[
    bool,
    typer.Option("--int8", help="Add two INT8 graphs, one for CPUs and one for GPUs. They need good images."),
]
PruneOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--prune",
        metavar="auto|RATIO",
        help="Add a graph with fewer hidden units in the coupling subnets, on which the other precisions are planned "
        "too. RATIO is the share of units that every subnet keeps, and auto searches for the smallest shares.",
    ),
]
CalibratorOption: TypeAlias = Annotated[
    str,
    typer.Option(
        "--calibrator",
        autocompletion=completion.calibrators,
        help="The rule for the ranges of INT8: auto, min-max, percentile, entropy or mse.",
    ),
]
GateOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--gate",
        metavar="NAME=VALUE",
        help="A limit that a lower precision must keep against fp32, such as map_correlation=0.98 or flips=0.05. "
        "May be repeated.",
    ),
]
LabelledOption: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--labelled", help="A labelled dataset with a test folder. The gate compares its metrics as well."
    ),
]


def precision_request(
    *,
    fp16: bool,
    bf16: bool,
    int8: bool,
    prune: str | None = None,
    calibrator: str,
    gate: list[str] | None,
    labelled: Path | None,
) -> PrecisionRequest | None:
    """Return the precisions that the options ask for, or None where they ask for none.

    Raises:
        FlowEdgeError: An option has an unknown value, or goes only with a precision, and none is to be added.
    """
    asked = {"fp16": fp16, "bf16": bf16, "int8": int8}
    wanted = tuple(name for name, is_wanted in asked.items() if is_wanted)
    share = prune_from(prune)
    if not wanted and share is None:
        if gate or labelled is not None:
            raise FlowEdgeError("--gate and --labelled go with --fp16, --bf16, --int8 or --prune.")
        return None
    with explain_missing("calibrate"):
        from flowedge.calibration.dataset import read_dataset
        from flowedge.calibration.gate_report import DEFAULT_LIMITS
        from flowedge.calibration.precision import PrecisionRequest
        from flowedge.calibration.precision.calibrators import AUTO, CALIBRATORS
    rules = (AUTO, *CALIBRATORS)
    if calibrator not in rules:
        raise FlowEdgeError(f"--calibrator is one of {', '.join(rules)}, got {calibrator!r}.")
    return PrecisionRequest(
        wanted=wanted,  # type: ignore[arg-type]
        prune=share,
        calibrator=calibrator,  # type: ignore[arg-type]
        limits={
            name: _limits(DEFAULT_LIMITS[name], gate or [])
            for name in (*wanted, *(() if share is None else ("pruned",)))
        },
        labelled=None if labelled is None else read_dataset(labelled),
    )


def fraction_from(option: str) -> float | None:
    """Return the number of an option that lies above 0 and below 1, or None where it does not or is no number."""
    try:
        value = float(option)
    except ValueError:
        return None
    return value if 0 < value < 1 else None


def prune_from(option: str | None) -> Prune | None:
    """Return the value of ``--prune``, or None where it was not given.

    Raises:
        FlowEdgeError: The value is neither ``auto`` nor a share between 0 and 1.
    """
    if option is None:
        return None
    if option == "auto":
        return "auto"
    share = fraction_from(option)
    if share is None:
        raise FlowEdgeError(
            f"--prune takes auto, or the share of hidden units that every subnet keeps, above 0 and below 1 such as "
            f"0.5, got {option!r}."
        )
    return share


def print_slow_precisions(*, bf16: bool, int8: bool) -> None:
    """Print which of the wanted precisions gain nothing on this processor, before anyone waits for them."""
    from flowedge.runtime.device.machine import slow_precisions

    slow = slow_precisions()
    for name, is_wanted in (("bf16", bf16), ("int8-cpu", int8)):
        if is_wanted and name in slow:
            MESSAGES.print(f"{slow[name]} The graph may still be worth it on another device.", soft_wrap=True)


def _limits(defaults: GateLimits, assignments: Sequence[str]) -> GateLimits:
    """Return the limits of a gate, with those that ``--gate`` names changed."""
    import msgspec

    names = defaults.__struct_fields__
    changed: dict[str, float] = {}
    for assignment in assignments:
        name, _, text = assignment.partition("=")
        try:
            changed[name] = float(text)
        except ValueError:
            raise FlowEdgeError(f"--gate takes NAME=NUMBER, got {assignment!r}.") from None
        least = -1.0 if name in _CORRELATIONS else 0.0
        if name not in names or not least <= changed[name] <= (
            1.0 if name in _UP_TO_ONE else sys.float_info.max
        ):
            raise FlowEdgeError(
                f"--gate takes one of {', '.join(names)} with a number from 0 on, got {assignment!r}. "
                f"The smallest value of {' and '.join(_CORRELATIONS)} is -1, and the largest value of "
                f"{', '.join(_UP_TO_ONE)} is 1."
            )
    return msgspec.structs.replace(defaults, **changed)


def print_fitted(record: CalibrationRecord, bundle: Path) -> None:
    """Print the fitted numbers of each precision, and each note on them once."""
    rows = table("precision", "score maxima", ">image threshold", ">pixel threshold")
    notes: dict[str, list[str]] = {}
    for graph in record.graphs:
        limits = [None if t is None else t.value for t in (graph.thresholds.image, graph.thresholds.pixel)]
        rows.add_row(graph.precision, maxima_text(graph.score_maxima), *(number(limit) for limit in limits))
        for note in graph.notes:
            notes.setdefault(note, []).append(graph.precision)
    for sentence in record.frame_notes:
        MESSAGES.print(sentence, soft_wrap=True)
    for note, precisions in notes.items():
        PROBLEMS.print(f"warning: {', '.join(precisions)}: {note}", soft_wrap=True)
    RESULTS.print(rows)
    print_fitted_points(record.graphs, bundle)
    RESULTS.print(f"{bundle}: fitted on {record.images} good images")


def maxima_text(maxima: ScoreMaxima | None) -> str:
    """Return score maxima as the text of a table's cell."""
    if maxima is None:
        return "-"
    return ", ".join(f"{value:.4f}" for value in (*maxima.level_max, maxima.map_max))


def print_reports(reports: Sequence[PrecisionReport]) -> None:
    """Print a table for each precision with what the gate found, and the blocks that were reverted."""
    for report in reports:
        if report.precision == "pruned" and report.pruning is not None:
            print_gate(report.gate, pruning_text(report.pruning, report.bytes_share))
            continue
        low = [block for block in report.blocks if not block.reason]
        share = sum(block.macs_share for block in low)
        print_gate(
            report.gate,
            f"{report.precision}: {len(low)} of {len(report.blocks)} blocks, {share:.0%} of the multiply-accumulates, "
            f"{report.bytes_share:.2f} of the size of the fp32 graph"
            + ("" if report.calibrator is None else f", ranges by {report.calibrator}"),
        )
        if report.precision == "bf16":
            MESSAGES.print(
                "bf16: the gate and the calibration rounded to bfloat16 in float32, which ONNX Runtime's CPU runs. "
                "Check the device with: flowedge verify BUNDLE --precision bf16 --engine openvino --data GOOD",
                soft_wrap=True,
            )
        for block in report.blocks:
            if block.reason:
                kept = f"{report.precision}: {block.name} stays {block.precision}: {block.reason}"
                MESSAGES.print(kept, soft_wrap=True)
        for node, why in list(report.kept_in_fp32.items())[:10]:
            MESSAGES.print(f"{report.precision}: {node} stays fp32: {why}", soft_wrap=True)
        if len(report.kept_in_fp32) > 10:
            MESSAGES.print(
                f"{report.precision}: and {len(report.kept_in_fp32) - 10} more nodes, which calibration.json lists"
            )


def pruning_text(facts: PruningFacts, bytes_share: float) -> str:
    """Return what a pruning left out and saved, as the line above a table."""
    units, kept = (
        sum(values) for values in zip(*((one.units, one.kept) for one in facts.layers), strict=True)
    )
    return (
        f"pruned: {kept} of {units} hidden units in {len(facts.layers)} layers, {facts.macs_saved:.0%} of the "
        f"multiply-accumulates saved, {facts.time_ratio:.2f} of the time and {bytes_share:.2f} of the size of the fp32 "
        "graph"
    )


def print_gate(report: GateReport, title: str) -> None:
    """Print a table of the quantities that the gate compared."""
    # The title of a table would be wrapped at the width of its few columns.
    RESULTS.print(title, style="bold", soft_wrap=True)
    rows = table("gate", ">value", ">limit", "")
    for quantity in report.quantities:
        limit = "-" if quantity.limit is None else f"{quantity.limit:.4g}"
        mark = "" if quantity.limit is None else "ok" if quantity.passed else "FAILED"
        rows.add_row(quantity.name, number(quantity.value), limit, mark)
    RESULTS.print(rows)
