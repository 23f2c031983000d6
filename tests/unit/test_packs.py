"""A pack: one backbone, a head per product, and the answers of the single bundles."""

from __future__ import annotations

import json
import pickle
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

import flowedge
from flowedge.bundle import Bundle, open_bundle, replace_in_bundle
from flowedge.calibration.operating_points import nfa_operating_points, with_commands
from flowedge.errors import BundleError, EngineWrongError, ProcessError, RegistryError, SignatureError
from flowedge.export.graph.split import first_difference, split_graph
from flowedge.export.pack import PackResult, pack_bundles
from flowedge.manifest import NfaThreshold, Thresholds
from flowedge.manifest_json import canonical_hash
from flowedge.pack import check_alike, open_pack
from flowedge.runtime.detector import Detector
from flowedge.runtime.engines import onnxrt
from flowedge.runtime.from_path import load_detectors
from flowedge.runtime.opening.joined import joined_of
from flowedge.runtime.products import ProductLine
from flowedge.runtime.protocols import Inspects, InspectsProducts
from flowedge.runtime.registry.signing import new_key, read_signing_key, sign_folder
from flowedge.runtime.registry.transfer import pull, push
from flowedge.runtime.result import Result
from flowedge.runtime.verify import BATCH_LIMIT
from flowedge.targets import check_pack_target
from support.command_line import flowedge as command
from support.family_graphs import FAMILIES, FamilyBundle
from support.pretend_gpu import onnxruntime_on_pretended_cuda
from support.product_bundles import FRAME_SIZE, changed_graph, write_patches_bundle, write_product
from support.recorded_reports import RecordedReports
from support.tiny_bundle import write_tiny_bundle

CPU = "onnxruntime-cpu"
NAMES = ("bottle", "cable", "screw")


def frames(count: int, seed: int = 0) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (60 + 7 * number, 80, 3), dtype=np.uint8) for number in range(count)]


def pack_of(folder: Path, names: tuple[str, ...] = NAMES, **options: Any) -> PackResult:
    return pack_bundles(
        {name: folder / f"{name}.flowedge" for name in names}, folder / "line.flowedgepack", **options
    )


@pytest.fixture(scope="module")
def cflow(family_bundle: Callable[[str], FamilyBundle]) -> Bundle:
    """A CFLOW without a self-test, from which products are made."""
    return family_bundle("cflow").bundle


@pytest.fixture(scope="module")
def made(cflow: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three bundles of one backbone and their pack. Copy it before changing it."""
    folder = tmp_path_factory.mktemp("made")
    for number, name in enumerate(NAMES):
        write_product(cflow, folder / f"{name}.flowedge", flow=number, threshold=float(number))
    pack_of(folder)
    return folder


@pytest.fixture(scope="module")
def patches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two products whose features are the direct results of convolutions."""
    folder = tmp_path_factory.mktemp("patches")
    source = write_patches_bundle(folder / "source.flowedge")
    for number, name in enumerate(NAMES[:2]):
        write_product(source, folder / f"{name}.flowedge", flow=number)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def line(made: Path) -> Iterator[ProductLine]:
    with flowedge.load_pack(made / "line.flowedgepack", engine=CPU, threads=1) as opened:
        yield opened


def same(one: Result, other: Result) -> None:
    """Compare two results bit for bit."""
    assert (one.score, one.verdict) == (other.score, other.verdict)
    np.testing.assert_array_equal(one.network_map, other.network_map)
    for ours, theirs in zip(one.levels, other.levels, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_familys_products_answer_as_their_bundles_bit_for_bit(
    family_bundle: Callable[[str], FamilyBundle], tmp_path: Path, family: str
) -> None:
    for number, name in enumerate(NAMES[:2]):
        write_product(family_bundle(family).bundle, tmp_path / f"{name}.flowedge", flow=number)
    check_answers(tmp_path)


def test_a_bias_that_the_flow_adds_to_is_added_as_in_the_bundle(patches: Path) -> None:
    check_answers(patches)


def check_answers(tmp_path: Path) -> None:
    """Pack two products, and compare their answers with those of their bundles."""
    result = pack_of(tmp_path, NAMES[:2])
    assert dict(result.differences) == {"fp32": 0.0}
    some = frames(3)
    with flowedge.load_pack(result.pack.path, engine=CPU) as line:
        together = line.detect_products(some[0])
        for name in NAMES[:2]:
            with flowedge.load(tmp_path / f"{name}.flowedge", engine=CPU) as alone:
                same(line(some[0], product=name), alone(some[0]))
                same(together[name], alone(some[0]))
                for ours, theirs in zip(
                    line.detect_batch(some, product=name), alone.detect_batch(some), strict=True
                ):
                    same(ours, theirs)
    with flowedge.load_pack(result.pack.path, engine="openvino") as line:
        for name in NAMES[:2]:
            with flowedge.load(tmp_path / f"{name}.flowedge", engine=CPU) as alone:
                assert line(some[0], product=name).score == pytest.approx(
                    alone(some[0]).score, rel=1e-4, abs=1e-5
                )


def test_a_graph_that_takes_frames_keeps_its_preprocessing_in_the_backbone(tmp_path: Path) -> None:
    source = write_patches_bundle(tmp_path / "source.flowedge", takes_frames=True)
    for number, name in enumerate(NAMES[:2]):
        write_product(source, tmp_path / f"{name}.flowedge", flow=number)
    result = pack_of(tmp_path, NAMES[:2])
    frame = np.random.default_rng(0).integers(0, 256, (*FRAME_SIZE, 3), dtype=np.uint8)
    with flowedge.load_pack(result.pack.path, engine=CPU) as line:
        with flowedge.load(tmp_path / "cable.flowedge", engine=CPU) as alone:
            same(line(frame, product="cable"), alone(frame))
        with pytest.raises(flowedge.errors.ImageError, match="60x80"):
            line(frames(1)[0], product="cable")
    write_product(open_bundle(tmp_path / "bottle.flowedge"), tmp_path / "nut.flowedge")
    manifest = msgspec.structs.replace(open_bundle(tmp_path / "nut.flowedge").manifest, frame_size=(41, 50))
    with pytest.raises(BundleError, match=r"frame_size is \(40, 50\) in bottle and \(41, 50\) in nut"):
        check_alike(tmp_path, {"bottle": open_bundle(tmp_path / "bottle.flowedge").manifest, "nut": manifest})


def test_the_real_checkpoint_answers_in_a_pack_as_alone(tile_bundle: Path, tmp_path: Path) -> None:
    result = pack_bundles({"a": tile_bundle, "b": tile_bundle}, tmp_path / "tiles.flowedgepack")
    assert dict(result.differences) == {"fp32": 0.0}
    (frame,) = frames(1)
    with (
        flowedge.load_pack(result.pack.path, engine=CPU) as line,
        flowedge.load(tile_bundle, engine=CPU) as alone,
    ):
        same(line(frame, product="b"), alone(frame))


def test_a_batch_may_mix_products(line: ProductLine) -> None:
    some = frames(5)
    order = ["screw", "bottle", "screw", "cable", "bottle"]
    results = line.detect_batch(some, product=order)
    for frame, name, result in zip(some, order, results, strict=True):
        alone = line(frame, product=name)
        assert result.score == pytest.approx(alone.score, rel=10 * BATCH_LIMIT)
        assert (result.verdict, result.frame_size) == (alone.verdict, frame.shape[:2])
        np.testing.assert_allclose(result.network_map, alone.network_map, atol=BATCH_LIMIT * 10)


def test_several_products_cost_one_run_of_the_backbone_and_loading_is_over(
    line: ProductLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined = joined_of(line.detector("bottle").engine)
    runs: list[int] = []
    infer = joined.backbone.infer

    def counted(*inputs: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        runs.append(len(inputs[0]))
        return infer(*inputs)

    monkeypatch.setattr(joined.backbone, "infer", counted)
    monkeypatch.setattr(onnxrt, "load", None)  # nothing can be loaded from here on
    assert set(line.detect_products(frames(1)[0])) == set(NAMES)
    assert set(line.detect_products(frames(1)[0], ["cable"])) == {"cable"}
    line.detect_batch(frames(4), product=["bottle", "cable", "screw", "cable"])
    for name in NAMES:
        line(frames(1)[0], product=name)
    assert runs == [1, 1, 4, 1, 1, 1]
    assert line.detect_products(frames(1)[0], []) == {}
    assert line.detect_batch([], product=[]) == []


def test_products_share_the_backbones_file_and_engine(made: Path, line: ProductLine) -> None:
    pack = open_pack(made / "line.flowedgepack")
    assert [path.name for path in pack.path.rglob("backbone*")] == ["backbone.onnx"]
    engines = {id(joined_of(line.detector(name).engine).backbone) for name in NAMES}
    assert len(engines) == 1


def test_each_product_keeps_its_manifest_and_thresholds(made: Path, line: ProductLine) -> None:
    for number, name in enumerate(NAMES):
        inside = made / "line.flowedgepack" / "products" / name / "manifest.json"
        assert inside.read_bytes() == (made / f"{name}.flowedge" / "manifest.json").read_bytes()
        image = line.detector(name).thresholds.image
        assert image is not None
        assert image.value == number


@pytest.mark.parametrize("product", [None, "nut", "Bottle"])
def test_a_wrong_product_is_answered_with_the_names(line: ProductLine, product: str | None) -> None:
    (frame,) = frames(1)
    for use in (
        lambda: line(frame, product=product),
        lambda: line.detect_batch([frame], product=product),
        lambda: line.detector(product),
    ):
        with pytest.raises(ValueError, match="bottle, cable, screw"):
            use()
    with pytest.raises(ValueError, match="bottle, cable, screw"):
        line.detect_products(frame, ["bottle", "nut"])
    with pytest.raises(ValueError, match="2 frames and 1 products"):
        line.detect_batch(frames(2), product=["bottle"])


def test_only_the_named_products_are_loaded(made: Path) -> None:
    with flowedge.load_pack(made / "line.flowedgepack", products=["cable"], engine=CPU) as line:
        assert line.products == ("cable",)
        assert line(frames(1)[0]).verdict in ("ok", "anomalous")
    with pytest.raises(BundleError, match=r"'nut'.*bottle, cable, screw"):
        flowedge.load_pack(made / "line.flowedgepack", products=["nut"])
    with pytest.raises(ValueError, match="no product"):
        flowedge.load_pack(made / "line.flowedgepack", products=[])


def test_the_folder_of_a_product_loads_as_a_bundle_does(made: Path) -> None:
    (frame,) = frames(1)
    inside = made / "line.flowedgepack" / "products" / "cable"
    with (
        flowedge.load(inside, engine=CPU) as one,
        flowedge.load(made / "cable.flowedge", engine=CPU) as alone,
    ):
        same(one(frame), alone(frame))
    with pytest.raises(ValueError, match="closed"):
        one(frame)
    assert all(check.passed for check in flowedge.verify(inside, engine=CPU))


def test_closing_a_products_detector_leaves_the_line_open_and_closing_the_line_ends_both(made: Path) -> None:
    line = flowedge.load_pack(made / "line.flowedgepack", engine=CPU)
    (frame,) = frames(1)
    with line.detector("bottle") as first:
        same(first(frame), line(frame, product="bottle"))
    second = line.detector("bottle")
    line.close()
    line.close()
    for use in (
        lambda: first(frame),
        lambda: second(frame),
        lambda: line(frame, product="cable"),
        lambda: line.detect_products(frame),
        lambda: line.detector("cable"),
    ):
        with pytest.raises(ValueError, match="closed"):
            use()


def test_a_line_and_its_detectors_fit_the_protocols(line: ProductLine) -> None:
    products: InspectsProducts = line  # the type checker compares them
    detector: Inspects = products.detector(products.products[0])
    (frame,) = frames(1)
    same(detector(frame), products(frame, product="bottle"))


def test_the_errors_of_a_line_name_the_line_and_its_pack(made: Path, line: ProductLine) -> None:
    with pytest.raises(ProcessError, match=r"a line .*load\('.*line\.flowedgepack'\)"):
        pickle.dumps(line)
    held = line.detector("cable")
    line.close()
    with pytest.raises(ValueError, match="this line was closed"):
        line(frames(1)[0], product="bottle")
    with pytest.raises(ValueError, match="this detector was closed"):
        held(frames(1)[0])
    assert repr(line).endswith(", closed>")
    assert repr(held).endswith(", closed>")


def test_one_name_is_not_taken_for_a_list_of_its_letters(cflow: Bundle, tmp_path: Path) -> None:
    for name in ("a", "b", "ab"):
        write_product(cflow, tmp_path / f"{name}.flowedge")
    pack_of(tmp_path, ("a", "b", "ab"))
    with flowedge.load_pack(tmp_path / "line.flowedgepack", products="ab", engine=CPU) as line:
        assert line.products == ("ab",)
        assert list(line.detect_products(frames(1)[0], "ab")) == ["ab"]


def test_a_warm_line_has_run_every_head(line: ProductLine, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(
        Detector,
        "warm_up",
        lambda self, size, *, batch: seen.append(f"{self.bundle.path.name} {size} {batch}"),
    )
    line.warm_up((30, 40), batch=2)
    assert seen == [f"{name} (30, 40) 2" for name in NAMES]


def test_products_of_another_type_are_refused(line: ProductLine) -> None:
    (frame,) = frames(1)
    wrong: Any
    for wrong in (["bottle"], 0):
        with pytest.raises(ValueError, match="there is no product"):
            line(frame, product=wrong)
    assert len(line.detect_batch(frames(2), product=np.array(["bottle", "cable"]))) == 2  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [".", "../cable", "link"])
def test_a_product_is_found_by_any_name_of_its_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    products = folder / "line.flowedgepack" / "products"
    monkeypatch.chdir(products / "cable")
    (folder / "link").symlink_to(products / "cable")
    place = folder / "link" if name == "link" else Path(name)
    with flowedge.load(place, engine=CPU) as one:
        assert one.bundle.path.name == "cable"
    assert len(flowedge.verify(place, engine=CPU)) > 0
    with pytest.raises(BundleError, match="is a product of the pack"):
        open_bundle(place)


def test_a_bundle_two_folders_below_a_pack_index_is_a_bundle(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "pack.json").write_text("{}")
    inside = tmp_path / "other" / "bottle.flowedge"
    shutil.copytree(folder / "bottle.flowedge", inside)
    assert open_bundle(inside).path == inside


def test_what_is_no_pack_is_refused_with_what_it_is(folder: Path) -> None:
    pack = folder / "line.flowedgepack"
    for path, message in {
        folder / "bottle.flowedge": r"is a bundle, and this takes a pack",
        pack / "products" / "cable": r"is a product of the pack .*line\.flowedgepack",
        folder: r"is not a pack: it has no pack\.json",
        folder / "missing": r"is not a pack: no such folder",
        Path("."): r"is not a pack",
    }.items():
        with pytest.raises(BundleError, match=message):
            flowedge.load_pack(path)
    with pytest.raises(BundleError, match="is a file of the pack"):
        flowedge.load(pack / "backbone.onnx")
    with pytest.raises(BundleError, match="has no int8 graphs"):
        flowedge.load_pack(pack, precision="int8")


def test_a_current_folder_without_a_bundle_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("", ".", "..", "/"):
        with pytest.raises(BundleError, match="is a folder, and no bundle"):
            flowedge.load(name)


@pytest.mark.parametrize("engine", [CPU, "openvino"])
def test_threads_share_a_line_and_get_their_own_answers(made: Path, engine: str) -> None:
    some = frames(4)
    wrong: list[str] = []
    with flowedge.load_pack(made / "line.flowedgepack", engine=engine, threads=1) as line:
        alone = {(n, name): line(frame, product=name).score for n, frame in enumerate(some) for name in NAMES}

        def work(number: int) -> None:
            for turn in range(12):
                name = NAMES[(number + turn) % len(NAMES)]
                if line(some[number], product=name).score != alone[number, name]:
                    wrong.append(f"{number} {name}")
                if line.detect_products(some[number])[name].score != alone[number, name]:
                    wrong.append(f"{number} {name} together")

        threads = [threading.Thread(target=work, args=(number,)) for number in range(len(some))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


# What cannot share a backbone


def test_backbones_that_were_trained_apart_are_refused_by_bundle_and_tensor(
    cflow: Bundle, folder: Path
) -> None:
    shutil.rmtree(folder / "cable.flowedge")
    write_product(cflow, folder / "cable.flowedge", flow=1, backbone=1)
    with pytest.raises(BundleError, match=r"bottle and cable differ, first in backbone\.convs\.0\.weight"):
        pack_bundles({name: folder / f"{name}.flowedge" for name in NAMES}, folder / "other.flowedgepack")
    assert not (folder / "other.flowedgepack").exists()
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []


def test_another_preprocessing_is_refused_by_bundle_and_field(cflow: Bundle, folder: Path) -> None:
    write_product(cflow, folder / "nut.flowedge", mean=0.25)
    with pytest.raises(BundleError, match=r"bottle and nut.*mean is \(0\.485.* in bottle and \(0\.25"):
        pack_of(folder, ("bottle", "nut"), overwrite=True)


def test_another_network_is_another_backbone(folder: Path, patches: Path) -> None:
    shutil.copytree(patches / "cable.flowedge", folder / "nut.flowedge")
    with pytest.raises(
        BundleError, match="cannot share a backbone: the fp32 backbones of bottle and nut differ"
    ):
        pack_of(folder, ("bottle", "nut"), overwrite=True)


def test_thresholds_to_choose_from_are_set_in_the_bundle_that_was_packed(made: Path) -> None:
    points = nfa_operating_points(np.arange(4.0), np.array([False, False, True, True]), 0.0)
    commands = [
        point.command
        for path in ("line.flowedgepack/products/cable", "cable.flowedge")
        for point in with_commands(points, made / path, "fp32", "photos")
        if point.command
    ]
    assert "flowedge threshold set cable.flowedge " in commands[0]
    assert f"flowedge threshold set {made / 'cable.flowedge'} " in commands[-1]


def test_the_limit_that_decides_and_a_product_without_limits_are_shown(folder: Path) -> None:
    for name, thresholds in (
        ("bottle", Thresholds(nfa=NfaThreshold(form="tree", log_nfa=-1.5))),
        ("cable", Thresholds()),
    ):
        bundle = open_bundle(folder / f"{name}.flowedge")
        (graph,) = bundle.manifest.graphs
        graphs = (msgspec.structs.replace(graph, thresholds=thresholds),)
        replace_in_bundle(bundle, manifest=msgspec.structs.replace(bundle.manifest, graphs=graphs))
    reports = RecordedReports()
    pack_of(folder, overwrite=True, reports=reports)
    (note,) = reports.notes
    assert note.startswith("the product cable has no threshold, so its verdicts are unknown. Calibrate ")
    rows = command("info", folder / "line.flowedgepack").stdout.splitlines()
    shown = {row.split()[0]: row for row in rows if row.strip()}
    assert "tree log NFA < -1.5" in shown["bottle"]
    assert shown["cable"].split()[-1] == "none"


def test_a_precision_that_one_bundle_lacks_is_left_out_with_the_reason(cflow: Bundle, folder: Path) -> None:
    for number, name in enumerate(("bottle", "cable")):
        shutil.rmtree(folder / f"{name}.flowedge")
        write_product(cflow, folder / f"{name}.flowedge", flow=number, precisions=("fp32", "fp16"))
    both = pack_of(folder, ("bottle", "cable"), overwrite=True)
    assert both.pack.precisions == ("fp32", "fp16")
    assert both.differences["fp32"] == 0
    assert both.differences["fp16"] <= 1e-6
    (frame,) = frames(1)
    with (
        flowedge.load_pack(both.pack.path, engine=CPU, precision="fp16") as line,
        flowedge.load(folder / "cable.flowedge", engine=CPU, precision="fp16") as alone,
    ):
        assert line.precision == "fp16"
        assert line(frame, product="cable").score == pytest.approx(alone(frame).score, rel=1e-6)
    three = pack_of(folder, overwrite=True)
    assert three.pack.precisions == ("fp32",)
    assert dict(three.left_out) == {"fp16": "there is no such graph of screw"}
    with pytest.raises(BundleError, match=r"no fp16 graphs\. It has fp32"):
        flowedge.load(three.pack.path, precision="fp16")
    with pytest.raises(BundleError, match="auto"):
        flowedge.load(three.pack.path, precision="auto")


def test_int8_is_packed_where_the_backbones_are_equal_and_left_out_where_not(
    cflow: Bundle, tmp_path: Path
) -> None:
    precisions = ("fp32", "fp16", "int8-cpu", "int8-gpu")
    for number, name in enumerate(("bottle", "cable")):
        write_product(cflow, tmp_path / f"{name}.flowedge", flow=number, precisions=precisions)
    result = pack_of(tmp_path, ("bottle", "cable"))
    assert set(result.pack.precisions) == set(precisions)
    assert max(result.differences.values()) <= 1e-6
    with flowedge.load_pack(result.pack.path, engine=CPU, precision="int8") as line:
        assert line.precision == "int8-cpu"
        assert line.detect_products(frames(1)[0]).keys() == {"bottle", "cable"}
    changed = changed_graph(tmp_path / "cable.flowedge" / "model.fp16.onnx", 0, 1)
    replace_in_bundle(open_bundle(tmp_path / "cable.flowedge"), files={"model.fp16.onnx": changed})
    result = pack_of(tmp_path, ("bottle", "cable"), overwrite=True)
    assert set(result.pack.precisions) == {"fp32", "int8-cpu", "int8-gpu"}
    assert (
        "fp16 backbones of bottle and cable differ, first in backbone.convs.0.weight"
        in result.left_out["fp16"]
    )


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "größe", "x" * 101, "a b", "a\x1b"])
def test_a_name_that_is_no_folders_is_refused(folder: Path, name: str) -> None:
    with pytest.raises(BundleError, match="no name of a product"):
        pack_bundles({name: folder / "bottle.flowedge"}, folder / "x.flowedgepack")


def test_names_that_differ_in_capitals_are_refused(folder: Path) -> None:
    bundle = folder / "bottle.flowedge"
    with pytest.raises(BundleError, match="a and A differ in capitals only"):
        pack_bundles({"a": bundle, "A": bundle}, folder / "x.flowedgepack")
    with pytest.raises(BundleError, match="at least one"):
        pack_bundles({}, folder / "x.flowedgepack")


def test_a_pack_takes_its_place_whole_and_replaces_packs_only(folder: Path) -> None:
    with pytest.raises(BundleError, match="exists already"):
        pack_of(folder)
    assert pack_of(folder, ("bottle",), overwrite=True).pack.names == ("bottle",)
    assert open_pack(folder / "line.flowedgepack").names == ("bottle",)
    with pytest.raises(BundleError, match="is not a pack"):
        pack_bundles({"a": folder / "bottle.flowedge"}, folder / "cable.flowedge", overwrite=True)
    open_bundle(folder / "cable.flowedge")


def test_force_replaces_a_pack_and_never_deletes_another_file_in_it(folder: Path) -> None:
    target = folder / "line.flowedgepack"
    with pytest.raises(BundleError, match=r"exists already\. Replace it with --force"):
        check_pack_target(target, force=False)
    check_pack_target(target, force=True)
    (target / "notes.txt").write_text("mine")
    with pytest.raises(BundleError, match=r"notes\.txt"):
        check_pack_target(target, force=True)
    with pytest.raises(BundleError, match="is not a pack that FlowEdge can read"):
        check_pack_target(folder / "bottle.flowedge", force=True)


# The cut


def test_the_digest_is_of_the_computation_and_not_of_its_names(folder: Path) -> None:
    path = folder / "bottle.flowedge" / "model.onnx"
    one = split_graph(path)
    model = onnx.load(str(path))
    renamed = {name: f"t{number}" for number, node in enumerate(model.graph.node) for name in node.output}
    renamed |= {tensor.name: f"w{number}" for number, tensor in enumerate(model.graph.initializer)}
    kept = {value.name for value in model.graph.output}
    for node in model.graph.node:
        node.input[:] = [name if name in kept else renamed.get(name, name) for name in node.input]
        node.output[:] = [name if name in kept else renamed.get(name, name) for name in node.output]
    for tensor in model.graph.initializer:
        tensor.name = renamed[tensor.name]
    for value in model.graph.value_info:
        value.name = renamed.get(value.name, value.name)
    onnx.save(model, str(folder / "renamed.onnx"))
    other = split_graph(folder / "renamed.onnx")
    assert one.digest == other.digest
    assert first_difference(one, other) == ""


def test_a_graph_without_the_exporters_names_is_refused(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "tiny.flowedge")
    with pytest.raises(BundleError, match="cannot be cut at the features"):
        pack_bundles({"tiny": tmp_path / "tiny.flowedge"}, tmp_path / "x.flowedgepack")


def test_halves_that_do_not_answer_as_the_bundle_are_never_packed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flowedge.export import pack

    def wrong(path: Path, features: Any = None) -> Any:
        halves = split_graph(path, features)
        for node in halves.head.graph.node:
            if node.op_type == "Tanh":
                node.op_type = "Sigmoid"
        return halves

    monkeypatch.setattr(pack, "split_graph", wrong)
    with pytest.raises(BundleError, match="differ from the bundle by"):
        pack_bundles({"a": folder / "bottle.flowedge"}, folder / "x.flowedgepack")
    assert not (folder / "x.flowedgepack").exists()


# What is untrusted


def every_file(made: Path) -> list[str]:
    return [stored.path for stored in open_pack(made / "line.flowedgepack").index.files]


def test_every_byte_of_a_pack_is_checked(folder: Path) -> None:
    place = folder / "line.flowedgepack"
    for path in [*every_file(folder), "pack.json"]:
        file = place / path
        content = file.read_bytes()
        file.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
        with pytest.raises(BundleError):
            open_pack(place)
        file.write_bytes(content[:-4])
        with pytest.raises(BundleError):
            open_pack(place)
        file.unlink()
        with pytest.raises(BundleError):
            open_pack(place)
        file.write_bytes(content)
    open_pack(place)


def rewritten(place: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change ``pack.json`` as somebody who means it would: with a new hash."""
    content = json.loads((place / "pack.json").read_bytes())
    del content["sha256"]
    change(content)
    content["sha256"] = canonical_hash(content)
    (place / "pack.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda c: c.update(schema=2), "schema 2"),
        (lambda c: c.update(extra=1), "extra"),
        (lambda c: c.update(products=["../../etc"]), "products"),
        (lambda c: c.update(products=["bottle", "BOTTLE"]), "listed twice"),
        (lambda c: c.update(products=["nut"]), "not among the pack's files"),
        (lambda c: c.update(products=[]), "products"),
        (lambda c: c["backbones"][0]["features"][0].update(channels=99), None),
        (lambda c: c["files"][0].update(path="../outside"), "path"),
        (lambda c: c["files"].append(dict(c["files"][0])), "twice"),
        (lambda c: c["backbones"].append(c["backbones"][0]), "listed twice"),
        (lambda c: c["backbones"][0].update(precision="fp16"), "not among the pack's files"),
    ],
)
def test_an_index_that_was_changed_on_purpose_is_refused(
    folder: Path, change: Callable[[dict[str, Any]], None], problem: str | None
) -> None:
    place = folder / "line.flowedgepack"
    rewritten(place, change)
    with pytest.raises(BundleError, match=problem):
        flowedge.load(place, engine=CPU)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"3", b"{", b"[" * 100_000, b'{"schema": 1}', b"\xff", b"null"]
)
def test_an_index_that_is_no_index_is_refused(folder: Path, content: bytes) -> None:
    (folder / "line.flowedgepack" / "pack.json").write_bytes(content)
    with pytest.raises(BundleError):
        open_pack(folder / "line.flowedgepack")


def test_a_link_in_a_pack_is_refused(folder: Path) -> None:
    place = folder / "line.flowedgepack"
    (place / "backbone.onnx").rename(folder / "backbone.onnx")
    (place / "backbone.onnx").symlink_to(folder / "backbone.onnx")
    with pytest.raises(BundleError, match="symbolic link"):
        open_pack(place)


def test_a_head_of_another_product_is_found_by_the_self_test(folder: Path) -> None:
    place = folder / "line.flowedgepack"
    head = place / "products" / "cable" / "head.onnx"
    shutil.copy(place / "products" / "bottle" / "head.onnx", head)

    def listed(content: dict[str, Any]) -> None:
        by_path = {one["path"]: one for one in content["files"]}
        source = by_path["products/bottle/head.onnx"]
        by_path["products/cable/head.onnx"].update(size=source["size"], sha256=source["sha256"])

    rewritten(place, listed)
    with pytest.raises(EngineWrongError, match="products/cable"):
        flowedge.load(place, engine=CPU)
    assert command("verify", place, "--engine", CPU).status == 1


# The commands


def test_a_pack_is_made_shown_verified_and_run(folder: Path, tmp_path: Path) -> None:
    import cv2

    line = folder / "new.flowedgepack"
    done = command(
        "pack",
        folder / "bottle.flowedge",
        "--name",
        f"kabel={folder / 'cable.flowedge'}",
        "-o",
        line,
        "--json",
    )
    assert done.status == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["products"], told["precisions"], told["differences"]) == (
        ["bottle", "kabel"],
        ["fp32"],
        {"fp32": 0.0},
    )
    shown = command("info", line)
    assert shown.status == 0
    assert "kabel" in shown.stdout
    assert "backbone" in shown.stdout
    assert json.loads(command("info", line, "--json").stdout)["products"].keys() == {"bottle", "kabel"}
    assert command("info", line / "products" / "kabel").status == 0
    verified = command("verify", line, "--engine", CPU, "--json")
    assert verified.status == 0
    assert json.loads(verified.stdout)["products"].keys() == {"bottle", "kabel"}
    assert command("verify", line, "--engine", CPU, "--product", "kabel").status == 0
    cv2.imwrite(str(folder / "frame.png"), frames(1)[0])
    run = command("run", line, folder / "frame.png", "--product", "kabel", "--engine", CPU, "--json")
    alone = command("run", folder / "cable.flowedge", folder / "frame.png", "--engine", CPU, "--json")
    assert json.loads(run.stdout)["score"] == json.loads(alone.stdout)["score"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("run", "line.flowedgepack", "x.png"), "bottle, cable, screw"),
        (("run", "line.flowedgepack", "x.png", "--product", "nut"), "'nut'"),
        (("run", "bottle.flowedge", "x.png", "--product", "nut"), "is not a pack"),
        (("calibrate", "line.flowedgepack", "--data", "."), "Work on the bundle that was packed"),
        (("bench", "line.flowedgepack"), "Work on the bundle that was packed"),
        (("build", "line.flowedgepack/products/cable", "--engine", "tensorrt"), "is a product of the pack"),
        (("verify", "line.flowedgepack", "--data", "."), "--against and --data are for a bundle"),
        (("pack", "bottle.flowedge", "./bottle.flowedge", "-o", "x"), "would both be the product bottle"),
        (("pack", "bottle.flowedge", "--name", "nut", "-o", "x"), "NAME=BUNDLE"),
        (("pack", "-o", "x"), "at least one bundle"),
        (("pack", "missing.flowedge", "-o", "x"), "no such folder"),
    ],
)
def test_what_cannot_be_done_with_a_pack_says_what_can(
    folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], told: str
) -> None:
    monkeypatch.chdir(folder)
    done = command(*arguments)
    assert done.status == 2
    assert told in " ".join(done.stderr.split())


def test_a_pack_on_a_gpu_answers_as_on_the_cpu(made: Path, line: ProductLine) -> None:
    cuda = pytest.importorskip("flowedge.runtime.engines.cuda", reason="cuda-bindings is not installed")
    frame = np.random.default_rng(1).integers(0, 256, (50, 60, 3), np.uint8)
    expected = line.detect_products(frame)
    with (
        onnxruntime_on_pretended_cuda(cuda, onnxrt),
        flowedge.load_pack(made / "line.flowedgepack", engine="onnxruntime-cuda") as opened,
    ):
        for name, result in opened.detect_products(frame).items():
            assert result.score == pytest.approx(expected[name].score, rel=1e-5)
            np.testing.assert_allclose(result.network_map, expected[name].network_map, rtol=1e-4, atol=1e-6)


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The engines of ONNX Runtime that are open, from now on."""
    now_open: list[object] = []
    begin, close = onnxrt._OnnxRuntime.__init__, onnxrt._OnnxRuntime.close

    def counted(self: onnxrt._OnnxRuntime, *arguments: Any, **options: Any) -> None:
        begin(self, *arguments, **options)
        now_open.append(self)

    def uncounted(self: onnxrt._OnnxRuntime) -> None:
        close(self)
        now_open.remove(self)

    monkeypatch.setattr(onnxrt._OnnxRuntime, "__init__", counted)
    monkeypatch.setattr(onnxrt._OnnxRuntime, "close", uncounted)
    return now_open


def test_products_of_one_pack_that_are_opened_together_share_a_backbone_until_the_last_is_closed(
    made: Path, sessions: list[object]
) -> None:
    frame = frames(1)[0]
    with flowedge.load(made / "screw.flowedge", engine=CPU, threads=1) as alone:
        expected = alone(frame)
    products = made / "line.flowedgepack" / "products"
    paths = [products / "bottle", made / "cable.flowedge", products / "screw"]
    bottle, cable, screw = load_detectors(paths, engine=CPU, threads=1)
    assert [one.bundle.path for one in (bottle, cable, screw)] == paths
    assert joined_of(screw.engine).backbone is joined_of(bottle.engine).backbone
    assert len(sessions) == 4  # one backbone, two heads and the bundle that is in no pack
    bottle.close()
    bottle.close()
    assert len(sessions) == 4
    same(screw(frame), expected)
    screw.close()
    assert len(sessions) == 1
    cable.close()


def test_where_one_of_several_bundles_does_not_open_all_others_are_closed(
    made: Path, tmp_path: Path, sessions: list[object]
) -> None:
    shutil.copytree(made / "line.flowedgepack", tmp_path / "line.flowedgepack")
    products = tmp_path / "line.flowedgepack" / "products"
    with pytest.raises(BundleError, match="no product"):
        load_detectors([made / "cable.flowedge", products / "bottle", products / "nothing"], engine=CPU)
    assert sessions == []
    with pytest.raises(BundleError, match="Name one of its products"):
        load_detectors([made / "line.flowedgepack"])


def test_a_signed_pack_is_covered_as_a_whole_and_its_products_open_with_its_signature(folder: Path) -> None:
    line, name = folder / "line.flowedgepack", NAMES[0]
    _, public = new_key(folder, "release")
    signing = read_signing_key(folder / "release.key")
    with pytest.raises(SignatureError, match="product of the pack"):
        sign_folder(line / "products" / name, signing)
    with pytest.raises(SignatureError, match="is not signed"):
        flowedge.load_pack(line, require_signature=public)
    sign_folder(line, signing)
    pack = open_pack(line, require_signature=public)
    on_disk = {one.relative_to(line).as_posix() for one in line.rglob("*") if one.is_file()}
    assert {*(one.path for one in pack.index.files), "pack.json", "signature.toml"} == on_disk
    with flowedge.load(line / "products" / name, require_signature=public) as detector:
        assert detector.bundle.signature == pack.signature is not None
    push(line, str(folder / "shared"), require_signature=public)
    pulled = pull(str(folder / "shared"), folder / "pulled.flowedgepack", require_signature=public)
    assert pulled.signature == pack.signature
    again = pull(str(folder / "shared"), pulled.path, require_signature=public, overwrite=True)
    assert (again.downloaded, again.kept) == (0, pulled.downloaded)
    assert open_pack(pulled.path, require_signature=public).index == pack.index
    with pytest.raises(RegistryError, match="product of the pack"):
        push(line / "products" / name, str(folder / "other"))
    (line / "products" / name / "manifest.json").write_bytes(b"{}")
    with pytest.raises(BundleError, match=r"manifest\.json has 2 bytes"):
        flowedge.load_pack(line, require_signature=public)
