"""Run a benchmark: start a process for each combination, let them take turns, and collect their times.

A machine always does other work too. All combinations are loaded first, and are then timed in turns, a short window
each, so that other work slows all of them alike. The peak speed of the machine is measured in every turn as well.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from flowedge.clock import utc_now
from flowedge.progress import SILENT, Reports
from flowedge.runtime.bench.combination import Combination
from flowedge.runtime.bench.environment import EnergyMeter, find_environment
from flowedge.runtime.bench.plan import BenchOptions, combinations_of
from flowedge.runtime.bench.process import Worker
from flowedge.runtime.bench.protocol import Command, Job, Peak
from flowedge.runtime.bench.timing_report import SCHEMA, Environment, Report
from flowedge.runtime.device.machine import slow_precisions
from flowedge.runtime.opening.engine import engine_spec
from flowedge.version import __version__

ROUNDS: Final = 6
"""Turns of each combination and batch."""


def run_bench(
    bundles: Sequence[Path],
    options: BenchOptions,
    *,
    reports: Reports = SILENT,
) -> Report:
    """Measure every combination. A combination that cannot run gives a row with the reason.

    Args:
        bundles: The folders of the bundles. The list may be empty where there are peers.
        options: The user's choices.
        reports: Told of each step.

    Raises:
        BundleError: A bundle cannot be opened.
        EngineUnavailableError: An engine's name is unknown.
    """
    # An unknown name ends the run at once. An engine that is known but missing here becomes a row with the reason.
    for name in options.engines or ():
        engine_spec(name)
    date = utc_now().isoformat()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="flowedge-bench-")))
        runs = list(combinations_of(bundles, options, folder, reports))
        machine_worker = stack.enter_context(Worker(Job(kind="machine", threads=options.threads)))
        _tell_what_is_slow(runs, reports)
        for run in runs:
            reports.step(f"starting {run.label}")
            run.start(stack)
        machine = _measure(runs, options, machine_worker, reports)
        for run in runs:
            reports.step(f"checking {run.label}")
            run.finish(machine_worker)
        rows = tuple(run.row(machine, options.batches, options.command) for run in runs)
    return Report(
        schema=SCHEMA,
        flowedge_version=__version__,
        date=date,
        command=options.command,
        machine=machine,
        seconds=options.seconds,
        rows=rows,
        wrong=tuple(row.label for row in rows if row.is_wrong),
    )


def _tell_what_is_slow(runs: Sequence[Combination], reports: Reports) -> None:
    """Tell before anyone waits which graphs gain nothing on this processor. The sentence stays beside their numbers."""
    slow = slow_precisions()
    for run in runs:
        precision = "int8-cpu" if run.job.precision == "int8" else run.job.precision
        is_on_cpu = (
            bool(run.job.engine) and run.job.engine != "torch" and engine_spec(run.job.engine).device == "cpu"
        )
        if is_on_cpu and precision in slow:
            run.notes.append(slow[precision])
    for sentence in dict.fromkeys(note for run in runs for note in run.notes if note in slow.values()):
        reports.note(sentence)


def _measure(
    runs: Sequence[Combination], options: BenchOptions, machine_worker: Worker, reports: Reports
) -> Environment:
    """Time all combinations in turns, and return the machine's facts with the best speeds of all turns."""
    # 1. Each batch is warmed up on every combination before the first turn, and then timed in turns.
    seconds = options.seconds / ROUNDS
    meter = EnergyMeter()
    peaks: list[Peak] = []
    for batch in options.batches:
        for run in runs:
            if run.can(batch):
                reports.step(f"warming up {run.label}, batch {batch}")
                run.warm_up(batch, seconds)
        reports.step(f"timing batch {batch} in turns", ROUNDS)
        for _ in range(ROUNDS):
            peaks.append(machine_worker.ask(Command(do="peak", seconds=seconds), Peak))
            for run in runs:
                run.turn(batch, seconds, meter)
                if batch == options.batches[0]:
                    run.turn_stages(seconds / 2)
            reports.advance()
    # 2. Sharing is not measured in turns, since its numbers are compared within one row.
    for run in runs:
        reports.step(f"sharing {run.label} between threads")
        run.share(seconds)
    return msgspec.structs.replace(
        find_environment(),
        gflops=max(peak.gflops for peak in peaks),
        copy_gb_s=max(peak.copy_gb_s for peak in peaks),
    )
