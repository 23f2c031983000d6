"""Leave hidden units out of a bundle's fp32 graph, and let the gate decide."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from flowedge.bundle import Bundle, clone_bundle
from flowedge.calibration.calibration_record import BlockChoice, PrecisionReport, PruningFacts
from flowedge.calibration.gate_report import GateReport
from flowedge.calibration.precision.gate_images import GateImages, failed_self_tests, judging_engine
from flowedge.calibration.precision.precision_request import PrecisionRequest
from flowedge.calibration.precision.prune_search import PruningSearch
from flowedge.calibration.precision.pruner import Pruner
from flowedge.calibration.precision.rounded import files_of_rounded_answers
from flowedge.errors import CalibrationError, PrecisionError
from flowedge.graph_files import bytes_of_graph
from flowedge.manifest import GraphFile, Manifest, PrunedLayer
from flowedge.onnx_files import save_graph
from flowedge.progress import Prefixed, Reports
from flowedge.runtime.frames.graph_input import GraphInput
from flowedge.runtime.frames.images import read_image

FILE: Final = "model.pruned.onnx"
_MOST_IMAGES: Final = 64  # They give enough positions for every layer.
_ROUNDS: Final = 4  # Attempts to pass the gate with a calibrated graph.
_FIRST_PART: Final = 16  # The second attempt has this part of the steps fewer than the first.
_LEAST_SAVED: Final = (
    0.01  # A plan that saves a smaller share of the multiply-accumulates is not worth a graph.
)
_TIMED_RUNS: Final = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class PrunedGraph:
    """A pruned graph that passed its gate.

    Attributes:
        graph: The graph's entry in the manifest, without thresholds.
        files: The new files of a bundle: the graph, large weights beside it, and its answers to the self-test.
        report: The report of the gate.
    """

    graph: GraphFile
    files: Mapping[str, Path | bytes]
    report: PrecisionReport

    def in_place_of_fp32(self, bundle: Bundle, target: Path) -> Bundle:
        """Write a bundle whose only graph is the pruned one under the name ``fp32``, to plan precisions on.

        Args:
            bundle: The bundle.
            target: The folder to make.
        """
        graph = msgspec.structs.replace(self.graph, precision="fp32")
        manifest = msgspec.structs.replace(bundle.manifest, graphs=(graph,))
        return clone_bundle(bundle, target, manifest=manifest, files=self.files)


def check_no_graph_rests_on_old_pruning(manifest: Manifest, request: PrecisionRequest) -> None:
    """Refuse to replace the pruned graph of a bundle while another graph of the bundle was planned on it.

    Raises:
        CalibrationError: Such a graph is not to be planned anew.
    """
    kept = [
        graph.precision
        for graph in manifest.graphs
        if graph.pruned and graph.precision not in ("pruned", *request.precisions)
    ]
    if kept:
        options = " ".join(dict.fromkeys(f"--{name.partition('-')[0]}" for name in kept))
        raise CalibrationError(
            f"the bundle is pruned already, and these graphs were planned on that pruning: {', '.join(kept)}. A graph "
            f"is pruned once, from fp32. To plan all of it anew, add {options}."
        )


def pruned_graph(
    fp32: Bundle,
    folder: Path,
    images: Sequence[Path],
    images_sha256: str,
    request: PrecisionRequest,
    gate: GateImages,
    calibrated: Callable[[Bundle], Bundle],
    threads: int | None,
    reports: Reports,
) -> PrunedGraph:
    """Prune the fp32 graph of a bundle as a request says.

    Args:
        fp32: A calibrated bundle with the fp32 graph alone.
        folder: A folder for the graph and for drafts.
        images: The images of good parts, on which the hidden units are observed.
        images_sha256: The hash of these images.
        request: The request, whose ``prune`` is not None.
        gate: The images that candidates are compared on.
        calibrated: A function that fits the numbers of all graphs of a draft.
        threads: The number of images that run at a time.
        reports: Receives the progress of each step.

    Raises:
        PrecisionError: The gate does not pass, or too little is saved.
    """
    assert request.prune is not None
    told = Prefixed(reports, "pruning")
    pruner = Pruner(fp32.graph_path("fp32"))
    _observe(pruner, fp32, images, threads, told)
    search, steps = None, 0
    failures: tuple[str, ...] = ()
    if request.prune == "auto":
        search = PruningSearch(pruner, gate, request.limits_of("pruned"), told)
        search.measure()
        steps = search.largest_that_passes()
    for number in range(_ROUNDS):
        counts = search.counts(steps) if search is not None else pruner.counts_of_share(request.prune)  # type: ignore[arg-type]
        file = folder / f"pruned.{number}" / FILE
        file.parent.mkdir()
        save_graph(pruner.model(counts), file)
        saved = pruner.saved(file)
        if saved < _LEAST_SAVED:
            raise PrecisionError(
                f"pruning would save {saved:.1%} of the multiply-accumulates, and less than {_LEAST_SAVED:.0%} is not "
                "worth a graph. Nothing was written. Leave --prune out."
            )
        layers = tuple(
            PrunedLayer(name=layer.name, units=layer.units, kept=counts[layer.name])
            for layer in pruner.layers
        )
        base = fp32.manifest.graph("fp32")
        entry = GraphFile(
            precision="pruned", file=FILE, opset=base.opset, scoring=base.scoring, pruned=layers
        )
        manifest = msgspec.structs.replace(fp32.manifest, graphs=(*fp32.manifest.graphs, entry))
        files: dict[str, Path | bytes] = {one.name: one for one in sorted(file.parent.iterdir())}
        files |= files_of_rounded_answers(fp32, {"pruned": file}, threads=threads)
        draft = clone_bundle(fp32, file.parent / "bundle", manifest=manifest, files=files)
        # A calibration opens the graphs, and a graph that fails its self-test does not open.
        failures = failed_self_tests(draft, ["pruned"]).get("pruned", ())
        if not failures:
            ready = calibrated(draft)
            judged = gate.judge(ready, "pruned", request.limits_of("pruned"), request.labelled, told)
            if judged.passed:
                ratio = time_ratio(ready, images[0])
                if search is not None and ratio >= 1:
                    raise PrecisionError(
                        f"pruning would save {saved:.1%} of the multiply-accumulates and no time here: the pruned "
                        f"graph takes {ratio:.2f} of the time of fp32. Nothing was written. Leave --prune out."
                    )
                facts = PruningFacts(layers=layers, macs_saved=saved, time_ratio=ratio)
                report = _report(pruner, fp32, file, len(images), images_sha256, search, judged, facts)
                return PrunedGraph(graph=entry, files=files, report=report)
            failures = judged.failures
        if search is None:
            raise PrecisionError(
                f"a graph that keeps {request.prune:g} of its hidden units does not pass its gate: "
                f"{'; '.join(failures)}. Nothing was written. Give --prune a larger share or auto, or "
                "loosen a limit with --gate."
            )
        # The search does not see the self-test, labelled images and the graph's own score maxima. So single steps may
        # never end, and each round takes twice the share of the steps away.
        steps = search.largest_that_passes(steps - (steps << number) // _FIRST_PART, failures)
    raise PrecisionError(
        f"pruning does not pass its gate as it would ship: {'; '.join(failures)}. Nothing was written. Leave "
        "--prune out, give more images, or loosen a limit with --gate."
    )


def time_ratio(bundle: Bundle, path: Path) -> float:
    """Return the time of one image in the pruned graph divided by that in the fp32 graph of a bundle.

    Both graphs run in turns on one thread. The shortest processor time of each counts, so that other work on the
    machine hardly matters.

    Args:
        bundle: The bundle with both graphs.
        path: The file of the image.
    """
    image = GraphInput(bundle.manifest)([read_image(path, bundle.manifest.pixel_range)])
    times: dict[str, list[float]] = {"fp32": [], "pruned": []}
    with contextlib.ExitStack() as stack:
        engines = {
            name: stack.enter_context(contextlib.closing(judging_engine(bundle, name))) for name in times
        }
        for _ in range(_TIMED_RUNS + 1):
            for name, engine in engines.items():
                begin = time.thread_time()
                engine.infer(image)
                times[name].append(time.thread_time() - begin)
    # The first run of an engine allocates its memory.
    return min(times["pruned"][1:]) / min(times["fp32"][1:])


def _observe(
    pruner: Pruner, fp32: Bundle, images: Sequence[Path], threads: int | None, reports: Reports
) -> None:
    """Take the values of all hidden units on images that are spread over all good ones."""
    wanted = min(_MOST_IMAGES, len(images))
    chosen = [images[n * len(images) // wanted] for n in range(wanted)]
    input_of = GraphInput(fp32.manifest)
    inputs = (input_of([read_image(path, fp32.manifest.pixel_range)]) for path in chosen)
    reports.step("observing the hidden units", wanted)
    for _ in pruner.observe(inputs, wanted, threads):
        reports.advance()


def _report(
    pruner: Pruner,
    fp32: Bundle,
    file: Path,
    images: int,
    images_sha256: str,
    search: PruningSearch | None,
    judged: GateReport,
    facts: PruningFacts,
) -> PrecisionReport:
    """Return the report of a pruned graph. Its blocks are the hidden layers."""
    total = max(sum(layer.macs for layer in pruner.layers), 1)
    sensitivities = {} if search is None else search.sensitivities
    return PrecisionReport(
        precision="pruned",
        calibrator=None,
        images=images,
        images_sha256=images_sha256,
        kept_in_fp32={},
        blocks=tuple(
            BlockChoice(
                name=layer.name,
                macs_share=layer.macs / total,
                precision="fp32",
                sensitivity=sensitivities.get(layer.name),
                reason="",
            )
            for layer in pruner.layers
        ),
        gate=judged,
        bytes_share=bytes_of_graph(file) / bytes_of_graph(fp32.graph_path("fp32")),
        pruning=facts,
    )
