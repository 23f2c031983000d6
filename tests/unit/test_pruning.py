"""Hidden units are left out without a loss where they depend on others, and otherwise only as far as the gate lets."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import scipy.linalg  # type: ignore[import-untyped]
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from flowedge.bundle import Bundle, open_bundle
from flowedge.calibration.calibration_record import read_record
from flowedge.calibration.gate_report import DEFAULT_LIMITS, GateReport
from flowedge.calibration.precision import PrecisionRequest, add_precisions
from flowedge.calibration.precision.hidden_layers import hidden_layers_of
from flowedge.calibration.precision.hidden_units import UnitMoments, order_of_units
from flowedge.calibration.precision.prune_search import PruningSearch
from flowedge.calibration.precision.pruner import Pruner, PruningStep, choices_of_layer
from flowedge.errors import BundleError, CalibrationError, ImageError, PrecisionError
from flowedge.onnx_files import load_graph
from flowedge.runtime.bench.parity import parity_of
from flowedge.runtime.opening.unproven import open_unproven
from support.block_graph import Layer, write_photographs, write_with_selftest
from support.command_line import flowedge
from support.recorded_reports import RecordedReports

if TYPE_CHECKING:
    from flowedge.calibration.precision.precision_request import Prune
    from support.family_graphs import FamilyBundle

HIDDEN_LAYERS = {"cflow": 6, "fastflow": 8, "uflow": 5, "csflow": 12}
LOOSE = ("--gate", "map_correlation=0.5", "--gate", "map_error=50", "--gate", "rank_agreement=0")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs") / "good"
    write_photographs(folder, 3)
    return folder


def subnet_layers() -> list[Layer]:
    """Make a backbone of one convolution, and a subnet with two hidden layers of 24 units."""
    rng = np.random.default_rng(3)

    def conv(
        shape: tuple[int, ...], gain: float, low: float, high: float
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        weight = gain * rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        return weight.astype(np.float32), rng.uniform(low, high, shape[0]).astype(np.float32)

    found = [Layer("l0", *conv((4, 3, 2, 2), 6, 0, 3), stride=2)]
    for name, shape, gain in (
        ("trunk/0", (24, 4, 1, 1), 1.4),
        ("trunk/2", (24, 24, 1, 1), 1.4),
        ("trunk/4", (4, 24, 1, 1), 0.3),
    ):
        found.append(Layer(name, *conv(shape, gain, -0.5, 0.5), place="flow/steps/0/subnet"))
    return found


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return write_with_selftest(tmp_path / "subnet.flowedge", subnet_layers()).path


@pytest.fixture(autouse=True)
def faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the pruned graph for the faster one, because no test depends on the speed of its machine."""
    monkeypatch.setattr("flowedge.calibration.precision.pruning.time_ratio", lambda bundle, path: 0.75)


def outputs(model: onnx.ModelProto, image: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {session.get_inputs()[0].name: image}), strict=True))


def observed(pruner: Pruner, images: NDArray[np.float32]) -> Pruner:
    for _ in pruner.observe(iter(images[:, None]), len(images), 1):
        pass
    return pruner


def with_dependent_units(source: Path, target: Path) -> None:
    """Make the last unit of each hidden layer three times its first one, which a ReLU keeps."""
    model = load_graph(source)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = {node.name: node for node in model.graph.node}
    for layer in hidden_layers_of(model):
        for name in nodes[layer.node].input[1:]:
            value = numpy_helper.to_array(tensors[name]).copy()
            value[-1] = 3 * value[0]
            tensors[name].CopyFrom(numpy_helper.from_array(value, name))
    onnx.save(model, str(target))


@pytest.mark.parametrize("family", HIDDEN_LAYERS)
def test_units_that_depend_on_others_are_left_out_of_every_layer_without_a_loss(
    family: str, family_bundle: Callable[[str], FamilyBundle], tmp_path: Path
) -> None:
    known = family_bundle(family)
    graph = tmp_path / "dependent.onnx"
    with_dependent_units(known.bundle.graph_path("fp32"), graph)
    rng = np.random.default_rng(3)
    images = rng.standard_normal((40, *known.images.shape[1:])).astype(np.float32)
    pruner = observed(Pruner(graph), images)
    assert len(pruner.layers) == HIDDEN_LAYERS[family]
    counts = {layer.name: layer.units - 1 for layer in pruner.layers}
    assert max(pruner.error(name, kept) for name, kept in counts.items()) < 1e-9
    pruned = pruner.model(counts)
    onnx.checker.check_model(pruned, full_check=True)
    again = {layer.name: layer.units for layer in hidden_layers_of(onnx.shape_inference.infer_shapes(pruned))}
    assert again == counts
    before, after = (outputs(model, known.images) for model in (load_graph(graph), pruned))
    for name, expected in before.items():
        assert np.abs(after[name] - expected).max() <= 1e-5 * np.abs(expected).max(), name


def test_msflow_is_refused_before_anyone_waits_because_its_subnets_norm_over_all_units(
    family_bundle: Callable[[str], FamilyBundle], tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(family_bundle("msflow").bundle.path, tmp_path / "msflow.flowedge"))
    request, told = PrecisionRequest(wanted=("int8",), prune="auto"), RecordedReports()
    with pytest.raises(
        PrecisionError, match=r"--prune: the flow of family msflow has no hidden units .* a norm over all"
    ):
        add_precisions(open_bundle(bundle), (tmp_path / "good.png",), request, reports=told)
    assert told.steps == []
    with pytest.raises(BundleError, match=r"no pruned graph.*family msflow have no hidden units") as refused:
        open_bundle(bundle).manifest.graph("pruned")
    assert "--prune" not in str(refused.value)


def test_the_order_of_the_units_is_that_of_a_qr_factorisation_with_column_pivoting() -> None:
    rng = np.random.default_rng(0)
    values = np.maximum(rng.standard_normal((12, 5)) @ rng.standard_normal((5, 400)), 0) + rng.random((12, 1))
    weights = rng.uniform(0.1, 3, 12)
    moments = UnitMoments(12)
    for part in np.array_split(values, 4, axis=1):
        moments.add(part)
    for constant in (False, True):
        rows = values - values.mean(1, keepdims=True) if constant else values
        factor, pivots = scipy.linalg.qr((rows * np.sqrt(weights)[:, None]).T, mode="r", pivoting=True)
        found = order_of_units(moments.products(constant=constant), weights)
        assert found.order.tolist() == pivots.tolist()
        left = [np.square(factor[kept:, kept:]).sum() for kept in range(13)]
        assert found.errors == pytest.approx(np.array(left) / left[0], abs=1e-12)


def subnet_graph(
    folder: Path, units: int, *, padding: int = 0
) -> tuple[Path, dict[str, NDArray[np.float32]]]:
    """Write a graph of one subnet with 1x1 kernels, and return its weights."""
    rng = np.random.default_rng(1)
    shapes = {"w1": (units, 4, 1, 1), "b1": (units,), "w2": (3, units, 1, 1), "b2": (3,)}
    weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    place = "flow/steps/0/subnet"
    nodes = [
        helper.make_node("Conv", ["image", "w1", "b1"], ["z"], name=f"{place}/trunk/0/Conv"),
        helper.make_node("Relu", ["z"], ["h"], name=f"{place}/trunk/1/Relu"),
        helper.make_node(
            "Conv", ["h", "w2", "b2"], ["shift"], name=f"{place}/shift/Conv", pads=[padding] * 4
        ),
    ]
    values = [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 4, 9, 9])]
    side = 9 + 2 * padding
    given = [helper.make_tensor_value_info("shift", TensorProto.FLOAT, ["N", 3, side, side])]
    stored = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "subnet", values, given, stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), str(folder / "s.onnx"))
    return folder / "s.onnx", weights


def test_a_pruned_subnet_gives_what_least_squares_of_its_kept_units_give(tmp_path: Path) -> None:
    graph, weights = subnet_graph(tmp_path, 24)
    # So few images that every position of them is observed.
    images = np.random.default_rng(2).standard_normal((18, 4, 9, 9)).astype(np.float32)
    pruner = observed(Pruner(graph), images)
    (name,) = (layer.name for layer in pruner.layers)
    pruned = pruner.model({name: 8})
    tensors = {t.name: numpy_helper.to_array(t) for t in pruned.graph.initializer}
    kept = [int(np.flatnonzero(weights["b1"] == bias)[0]) for bias in tensors["b1"]]
    rows, wanted = (
        np.moveaxis(one, 1, -1).reshape(-1, one.shape[1]).astype(np.float64)
        for one in (images, outputs(load_graph(graph), images)["shift"])
    )
    hidden = np.maximum(rows @ weights["w1"][:, :, 0, 0].T + weights["b1"], 0)
    target, rows = wanted, np.column_stack([hidden[:, kept], np.ones(len(hidden))])
    refit = np.linalg.lstsq(rows, target, rcond=None)[0]
    found = np.moveaxis(outputs(pruned, images)["shift"], 1, -1).reshape(-1, 3)
    assert np.abs(found - rows @ refit).max() < 1e-3 * np.abs(target).max()
    assert 0.5 < 1 - np.square(found - target).sum() / np.square(target - target.mean(0)).sum() < 1


@pytest.mark.parametrize("value", [0.0, 0.3])
def test_a_layer_that_is_constant_on_the_images_loses_units_without_a_loss(
    tmp_path: Path, value: float
) -> None:
    """Its units have no variance, or that of rounding, and no least squares may learn from it."""
    graph, _ = subnet_graph(tmp_path, 24)
    pruner = observed(Pruner(graph), np.full((18, 4, 9, 9), value, np.float32))
    (name,) = (layer.name for layer in pruner.layers)
    images = np.full((1, 4, 9, 9), value, np.float32)
    before, after = (
        outputs(model, images)["shift"] for model in (load_graph(graph), pruner.model({name: 8}))
    )
    assert np.abs(after - before).max() <= 1e-5 * np.abs(before).max()


def test_a_padded_reader_reads_no_constant_beside_the_map(tmp_path: Path) -> None:
    graph, weights = subnet_graph(tmp_path, 24, padding=1)
    images = np.random.default_rng(2).standard_normal((18, 4, 9, 9)).astype(np.float32)
    pruner = observed(Pruner(graph), images)
    (name,) = (layer.name for layer in pruner.layers)
    found = outputs(pruner.model({name: 8}), images)["shift"]
    assert np.array_equal(found[:, :, 0], np.broadcast_to(weights["b2"][:, None], (18, 3, 11)))


@pytest.mark.parametrize(
    ("units", "fewest", "second"), [(1024, 16, 1008), (296, 16, 288), (32, 8, 24), (20, 8, 16), (5, 1, 4)]
)
def test_layers_keep_multiples_of_the_width_of_vector_kernels(units: int, fewest: int, second: int) -> None:
    choices = choices_of_layer(units)
    assert (choices[0], choices[1], choices[-1]) == (units, second, fewest)


class CountingSearch(PruningSearch):
    """Searches over steps of which a number passes, and runs no graph."""

    def __init__(self, steps: int, passing: int) -> None:
        self._steps = tuple(PruningStep("layer", steps - n) for n in range(steps))
        self._passing, self.judged = passing, list[int]()

    def _expected(self) -> int:
        return len(self._steps) // 3

    def _judge(self, steps: int, *, to_the_end: bool = False) -> GateReport:
        self.judged.append(steps)
        limits = DEFAULT_LIMITS["pruned"]
        passed = steps <= self._passing
        return GateReport(
            passed=passed, limits=limits, good_images=1, defect_images=0, labelled_images=0, quantities=()
        )


@pytest.mark.parametrize("passing", [1, 7, 19, 40, 63])
def test_the_search_finds_the_number_of_steps_that_passes(passing: int) -> None:
    search = CountingSearch(63, passing)
    assert search.largest_that_passes() == passing
    assert len(search.judged) <= 7
    assert search.largest_that_passes(below=passing + 1) == passing


def test_a_search_with_no_step_that_passes_is_refused() -> None:
    with pytest.raises(PrecisionError, match="however few hidden units are left out"):
        CountingSearch(63, 0).largest_that_passes()


def test_a_number_of_steps_that_only_the_whole_graph_refuses_is_refused_with_its_reason() -> None:
    with pytest.raises(PrecisionError, match="are left out: the self-test of the whole graph"):
        CountingSearch(63, 9).largest_that_passes(below=1, failures=["the self-test of the whole graph"])


def test_the_next_step_is_the_one_with_the_least_harm_for_what_it_saves(tmp_path: Path) -> None:
    graph, _ = subnet_graph(tmp_path, 40)
    images = np.random.default_rng(2).standard_normal((4, 4, 9, 9)).astype(np.float32)
    pruner = observed(Pruner(graph), images)
    (name,) = (layer.name for layer in pruner.layers)
    assert [step.kept for step in pruner.steps({name: 1.0})] == [32, 24, 16, 8]
    assert pruner.counts_of_share(0.55) == {name: 24}


@pytest.fixture
def done_json(copy: Path, photographs: Path) -> Mapping[str, Any]:
    done = flowedge("calibrate", copy, "--data", photographs, "--prune", "auto", "--int8", *LOOSE, "--json")
    assert done.status == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_plan_is_in_the_manifest_the_report_the_page_and_under_int8(
    done_json: Mapping[str, Any], copy: Path, photographs: Path
) -> None:
    assert [report["precision"] for report in done_json["typed"]] == ["pruned", "int8-gpu", "int8-cpu"]
    bundle = open_bundle(copy)
    assert [graph.precision for graph in bundle.manifest.graphs] == ["fp32", "pruned", "int8-gpu", "int8-cpu"]
    fp32, pruned, *stacked = bundle.manifest.graphs
    assert fp32.pruned == ()
    assert len(pruned.pruned) == 2
    assert sum(layer.kept for layer in pruned.pruned) < sum(layer.units for layer in pruned.pruned)
    assert all(graph.pruned == pruned.pruned for graph in stacked)
    record = read_record(bundle)
    assert record is not None
    kernels = [
        sum(
            np.prod(t.dims)
            for t in load_graph(bundle.graph_path(one.precision)).graph.initializer
            if len(t.dims) == 4
        )
        for one in (fp32, pruned)
    ]
    for report in record.lower_precisions:
        assert report.pruning is not None
        assert report.pruning.layers == pruned.pruned
        assert report.pruning.time_ratio == 0.75
        # Both hidden layers share the product between them, of which a unit of either saves a part.
        assert report.pruning.macs_saved == pytest.approx(1 - kernels[1] / kernels[0])
        assert report.gate.passed
    sizes = {
        graph.precision: {
            layer.name: layer.units
            for layer in hidden_layers_of(load_graph(bundle.graph_path(graph.precision)))
        }
        for graph in (fp32, pruned)
    }
    assert sizes == {
        "fp32": {layer.name: layer.units for layer in pruned.pruned},
        "pruned": {layer.name: layer.kept for layer in pruned.pruned},
    }
    page = (copy / "gate.pruned.html").read_text()
    assert "Hidden layers of the subnets" in page
    assert pruned.pruned[0].name in page

    for words in (("--precision", "pruned"), ("--precision", "int8")):
        verified = flowedge("verify", copy, *words)
        assert verified.status == 0, verified.stdout
        assert "against the recorded pruned answers" in verified.stdout
    with contextlib.closing(open_unproven("onnxruntime-cpu", bundle, "pruned", threads=1)) as engine:
        assert parity_of(bundle, engine).correlation == pytest.approx(1, abs=1e-6)
    shown = flowedge("info", copy).stdout.replace("\n", " ")
    assert "hidden units" in shown
    refused = flowedge("calibrate", copy, "--data", photographs, "--prune", "0.5", *LOOSE)
    assert refused.status == 2
    assert (
        "is pruned already, and these graphs were planned on that pruning: int8-gpu, int8-cpu."
        in refused.stderr
    )


def test_a_plan_on_fp32_beside_a_pruned_graph_tells_how_to_take_the_pruned_one(
    done_json: Mapping[str, Any], copy: Path
) -> None:
    told = RecordedReports()
    with pytest.raises(ImageError, match=r"missing\.png"):
        add_precisions(
            open_bundle(copy),
            (copy / "missing.png",),
            PrecisionRequest(wanted=("fp16", "int8")),
            reports=told,
        )
    (note,) = told.notes
    assert note.startswith("fp16, int8: planned on the fp32 graph, although the bundle has a pruned graph")
    assert "--prune auto" in note


def test_a_share_that_the_gate_refuses_leaves_the_bundle_as_it_was(copy: Path, photographs: Path) -> None:
    before = open_bundle(copy).manifest
    done = flowedge(
        "calibrate", copy, "--data", photographs, "--prune", "0.05", "--gate", "map_correlation=1"
    )
    assert done.status == 1
    assert "keeps 0.05 of its hidden units does not pass its gate: map correlation" in done.stderr
    assert open_bundle(copy).manifest == before


def test_pruning_that_saves_no_time_here_is_not_kept(
    copy: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowedge.calibration.precision.pruning.time_ratio", lambda bundle, path: 1.01)
    limits = msgspec.structs.replace(
        DEFAULT_LIMITS["pruned"], map_correlation=0.5, map_error=50, rank_agreement=0
    )
    request = PrecisionRequest(wanted=(), prune="auto", limits={"pruned": limits}, defects_per_image=1)
    with pytest.raises(PrecisionError, match=r"takes 1\.01 of the time of fp32\. Nothing was written"):
        add_precisions(open_bundle(copy), tuple(sorted(photographs.iterdir())), request, threads=1)


@pytest.mark.parametrize("prune", [0.5, "auto"])
def test_a_pruned_graph_that_fails_its_self_test_is_refused_by_the_gate(
    prune: Prune, copy: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "flowedge.runtime.verify.PARITY_LIMITS", {"fp32": 1e-4, "pruned": 1e-4, "int8-cpu": 1e-9}
    )
    limits = msgspec.structs.replace(
        DEFAULT_LIMITS["pruned"], map_correlation=0.5, map_error=50, rank_agreement=0
    )
    request = PrecisionRequest(wanted=(), prune=prune, limits={"pruned": limits}, defects_per_image=1)
    with pytest.raises(
        PrecisionError, match=r"self-test, level \d against the expected answers: .* at most 1e-09"
    ):
        add_precisions(open_bundle(copy), tuple(sorted(photographs.iterdir())), request, threads=1)


@pytest.mark.slow
def test_a_cflow_behind_a_resnet18_is_pruned_and_planned_in_int8(
    small_bundle: Path, photographs: Path, tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(small_bundle, tmp_path / "small.flowedge"))
    done = flowedge("calibrate", bundle, "--data", photographs, "--prune", "auto", "--int8", *LOOSE)
    assert done.status == 0, done.stderr
    assert len(open_bundle(bundle).manifest.graph("pruned").pruned) == 4
    for precision in ("pruned", "int8"):
        verified = flowedge("verify", bundle, "--precision", precision)
        assert verified.status == 0, verified.stdout


def test_pruning_without_images_is_refused(copy: Path) -> None:
    opened: Bundle = open_bundle(copy)
    with pytest.raises(CalibrationError, match="prune, int8: ranges and the gate need images of good parts"):
        add_precisions(opened, (), PrecisionRequest(wanted=("int8",), prune=0.5))


@pytest.mark.parametrize(
    ("command", "options", "reason"),
    [
        (
            "export",
            ["--prune", "0.5"],
            "--prune needs images of good parts: name their folder with --calib-data",
        ),
        (
            "calibrate",
            ["--prune", "0.5"],
            "graphs for --prune are planned and judged on images of good parts: name their",
        ),
        ("calibrate", ["--prune", "1.5", "--data", "GOOD"], "above 0 and below 1 such as 0.5, got '1.5'"),
        ("calibrate", ["--prune", "0", "--data", "GOOD"], "got '0'"),
        ("calibrate", ["--prune", "nan", "--data", "GOOD"], "got 'nan'"),
        ("calibrate", ["--prune", "half", "--data", "GOOD"], "--prune takes auto, or the share"),
    ],
)
def test_a_value_that_cannot_be_is_one_message(
    command: str, options: list[str], reason: str, copy: Path, photographs: Path
) -> None:
    words = [word.replace("GOOD", str(photographs)) for word in options]
    checkpoint = copy.parent / "never-read.ckpt"
    checkpoint.touch()
    source = (checkpoint, "-o", "new.flowedge") if command == "export" else (copy,)
    done = flowedge(command, *source, *words, cwd=copy.parent)
    assert done.status == 2
    assert reason in " ".join(done.stderr.split())
