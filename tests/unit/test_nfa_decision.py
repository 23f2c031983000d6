"""A limit of the number of false alarms decides the verdict, the mask and the regions where it is set."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

import flowedge as package
from flowedge.bundle import Bundle, open_bundle, write_bundle
from flowedge.calibration.calibrate import decide_by_nfa
from flowedge.errors import BundleError
from flowedge.manifest import Family, NfaOutputs, NfaThreshold, Preprocessing, Threshold, Thresholds
from flowedge.runtime.detector import Detector
from flowedge.runtime.engines.null import NullEngine
from flowedge.runtime.inspection import inspect_images
from flowedge.runtime.nfa import block_log_nfa, detected_regions, tree, tree_log_nfa
from flowedge.runtime.render import write_png
from flowedge.runtime.result import Result
from support.command_line import flowedge
from support.opened_engine import opened
from support.tiny_bundle import CHANNELS, IMAGE_SIZE, tiny_manifest, tiny_model, tiny_selftest

SIZES = ((8, 12), (4, 6))
COUNTING = NfaOutputs(energies=False, window=5, probability=0.9)
FRAME = np.zeros((*IMAGE_SIZE, 3), np.uint8)
FITTED = Thresholds(image=Threshold(value=1.0, method="manual"), pixel=Threshold(value=0.5, method="manual"))


def answering(bundle: Bundle, given: Mapping[str, NDArray[Any]]) -> NullEngine:
    """Make an engine that gives every image a score and a map of 0.25, and the given levels, energies and counts."""
    return NullEngine(bundle.manifest, {"score": 0.25, "anomaly_map": 0.25, **given})


def levels_with(spot: float) -> list[NDArray[np.float32]]:
    """Make mean energies per channel of 0.5, with ``spot`` on 3x4 pixels of the fine level."""
    levels = [np.full(size, 0.5, np.float32) for size in SIZES]
    levels[0][2:5, 4:8] = spot
    return levels


def named(kind: str, levels: list[NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {f"{kind}_{n}": level for n, level in enumerate(levels)}


def bundle_of(
    folder: Path,
    thresholds: Thresholds,
    *,
    family: Family = "fastflow",
    nfa: NfaOutputs | None = None,
    preprocessing: Preprocessing | None = None,
) -> Bundle:
    manifest = tiny_manifest(family=family, thresholds=thresholds, preprocessing=preprocessing)
    manifest = msgspec.structs.replace(manifest, nfa=nfa)
    model = {manifest.graphs[0].file: tiny_model().SerializeToString()}
    return write_bundle(folder / "tiny.flowedge", manifest, {**model, **tiny_selftest(manifest)})


def inspected(
    folder: Path,
    given: Mapping[str, NDArray[Any]],
    threshold: NfaThreshold,
    frame: NDArray[np.uint8] = FRAME,
    **more: Any,
) -> Result:
    thresholds = msgspec.structs.replace(FITTED, nfa=threshold)
    bundle = bundle_of(folder, thresholds, **more)
    return Detector(bundle, opened(answering(bundle, given)))(frame)


def test_the_tree_decides_from_the_levels_and_the_fitted_limits_do_not(tmp_path: Path) -> None:
    levels = levels_with(500.0)
    result = inspected(tmp_path, named("level", levels), NfaThreshold(form="tree"))
    wanted = tree_log_nfa([level * CHANNELS for level in levels], [CHANNELS] * 2, IMAGE_SIZE)
    assert result.network_log_nfa is not None
    np.testing.assert_array_equal(result.network_log_nfa, wanted)
    assert result.score < 1.0  # below the fitted image threshold
    assert (result.verdict, result.is_anomalous) == ("anomalous", True)
    assert result.log_nfa == wanted.min() < 0
    assert result.mask is not None
    np.testing.assert_array_equal(result.mask, wanted < 0)
    (region,) = result.regions
    assert (region.top, region.left, region.height_px, region.width_px) == box_of(wanted < 0)
    assert region.area_px == np.count_nonzero(wanted < 0)


def box_of(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(rows[0]), int(columns[0]), int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1


def test_the_limit_is_exclusive_and_moves_the_verdict(tmp_path: Path) -> None:
    given = named("level", levels_with(500.0))
    free = inspected(tmp_path, given, NfaThreshold(form="tree"))
    assert free.log_nfa is not None
    for name, limit, verdict in (("at", free.log_nfa, "ok"), ("above", free.log_nfa + 0.01, "anomalous")):
        (tmp_path / name).mkdir()
        result = inspected(tmp_path / name, given, NfaThreshold(form="tree", log_nfa=limit))
        assert result.verdict == verdict
        assert result.mask is not None
        assert result.mask.any() == (verdict == "anomalous")


def test_a_quiet_image_is_ok_and_has_no_region(tmp_path: Path) -> None:
    result = inspected(tmp_path, named("level", levels_with(0.5)), NfaThreshold(form="tree"))
    assert (result.verdict, result.regions) == ("ok", ())
    assert result.mask is not None
    assert not result.mask.any()


@pytest.mark.parametrize(
    ("family", "kind", "factor"),
    [
        ("uflow", "level", 1.0),
        ("csflow", "level", 1.0),
        ("msflow", "level", -0.5),
        ("cflow", "energy", CHANNELS),
    ],
)
def test_each_familys_outputs_give_the_same_energies(
    tmp_path: Path, family: Family, kind: str, factor: float
) -> None:
    levels = levels_with(500.0)
    given = {**named("level", levels), **named(kind, [level * factor for level in levels])}
    nfa = NfaOutputs(energies=True, window=5, probability=0.9) if kind == "energy" else None
    result = inspected(tmp_path, given, NfaThreshold(form="tree"), family=family, nfa=nfa)
    assert result.network_log_nfa is not None
    wanted = tree_log_nfa([level * CHANNELS for level in levels], [CHANNELS] * 2, IMAGE_SIZE)
    np.testing.assert_allclose(result.network_log_nfa, wanted, rtol=1e-6)


def test_the_blocks_decide_from_the_counts(tmp_path: Path) -> None:
    counts = [np.full(size, 1, np.int64) for size in SIZES]
    counts[0][3, 5] = 25 * CHANNELS
    given = {**named("level", levels_with(0.5)), **named("count", counts)}
    result = inspected(tmp_path, given, NfaThreshold(form="block"), nfa=COUNTING)
    wanted = block_log_nfa(counts, [CHANNELS] * 2, [5, 3], 0.9, IMAGE_SIZE)
    assert result.network_log_nfa is not None
    np.testing.assert_array_equal(result.network_log_nfa, wanted)
    assert result.verdict == "anomalous"


def broken(value: float) -> list[NDArray[np.float32]]:
    levels = levels_with(0.5)
    levels[1][2, 3] = value
    return levels


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("form", ["tree", "block"])
def test_a_level_that_is_not_finite_was_not_inspected_though_score_and_map_are(
    tmp_path: Path, form: Any, value: float
) -> None:
    given = {
        **named("level", broken(value)),
        **named("count", [np.zeros(size, np.int64) for size in SIZES]),
    }
    result = inspected(tmp_path, given, NfaThreshold(form=form), nfa=COUNTING)
    assert (result.verdict, result.is_anomalous, result.mask) == ("not_inspected", None, None)
    assert (result.log_nfa, result.log_nfa_map, result.regions) == (None, None, ())


@pytest.mark.parametrize("value", [0.5, np.nan, np.inf])
def test_counts_that_are_no_whole_numbers_were_not_inspected(tmp_path: Path, value: float) -> None:
    given = {**named("level", levels_with(0.5)), **named("count", broken(value))}
    assert inspected(tmp_path, given, NfaThreshold(form="block"), nfa=COUNTING).verdict == "not_inspected"


def test_regions_and_mask_are_in_pixels_of_the_frame_and_not_outside_of_a_crop(tmp_path: Path) -> None:
    mean = std = (0.5, 0.5, 0.5)
    cropped = Preprocessing(resize=(32, 48), method="float_bilinear", crop=IMAGE_SIZE, mean=mean, std=std)
    frame = np.zeros(
        (64, 96, 3), np.uint8
    )  # The frame has twice the resized size. The crop is 32x48 of it, from (16, 24) on.
    given = named("level", levels_with(500.0))
    result = inspected(tmp_path, given, NfaThreshold(form="tree"), frame, preprocessing=cropped)
    assert result.log_nfa_map is not None
    assert result.mask is not None
    assert result.log_nfa_map.shape == result.mask.shape == (64, 96)
    assert np.isnan(result.log_nfa_map[0, 0])
    (region,) = result.regions
    assert (region.top, region.left, region.height_px, region.width_px) == box_of(result.mask)
    # Rows 2 to 4 and columns 4 to 7 of the level are 4 pixels each, from the crop's corner on. Edges are soft.
    assert region.centroid == pytest.approx((16 + 4 * 3.5 - 0.5, 24 + 4 * 6 - 0.5), abs=0.6)


def test_a_limit_of_the_regions_moves_them() -> None:
    log_nfa = np.array([[-1.0, 5.0, -3.0]])
    assert [region.log_nfa for region in detected_regions(log_nfa)] == [-3.0, -1.0]
    assert [region.log_nfa for region in detected_regions(log_nfa, -2.0)] == [-3.0]


@pytest.mark.parametrize(
    ("family", "form", "message"),
    [
        ("uflow", "block", r"block form .* count_\*.*Export the checkpoint again with --nfa"),
        ("cflow", "tree", r"tree form .* energy_\*.*Export the checkpoint again with --nfa"),
        ("cflow", "block", r"count_\*"),
    ],
)
def test_a_form_that_the_graph_does_not_give_enough_for_is_refused(
    tmp_path: Path, family: Family, form: Any, message: str
) -> None:
    bundle = bundle_of(tmp_path, FITTED, family=family)
    with pytest.raises(BundleError, match=message):
        decide_by_nfa(bundle, NfaThreshold(form=form))
    assert open_bundle(bundle.path).manifest.graphs[0].thresholds == FITTED
    (tmp_path / "edited").mkdir()
    edited = bundle_of(tmp_path / "edited", Thresholds(nfa=NfaThreshold(form=form)), family=family)
    with pytest.raises(BundleError, match=message):
        Detector(edited, opened(answering(edited, {})))


@pytest.mark.parametrize(("form", "compiled"), [("tree", 1), ("block", 0)])
def test_a_detector_compiles_the_tree_while_it_loads_and_only_then(
    tmp_path: Path, form: Any, compiled: int
) -> None:
    tree._compiled_select.cache_clear()
    bundle = bundle_of(tmp_path, Thresholds(nfa=NfaThreshold(form=form)), nfa=COUNTING)
    Detector(bundle, opened(answering(bundle, {})))
    assert tree._compiled_select.cache_info().currsize == compiled


# --- the commands ---------------------------------------------------------------------------------------------


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """Write the tiny bundle with fitted limits."""
    return bundle_of(tmp_path, FITTED)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Make three random photographs."""
    folder = tmp_path / "good"
    folder.mkdir()
    for number in range(3):
        image = np.random.default_rng(number).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        write_png(folder / f"{number}.png", image)
    return folder


@pytest.mark.parametrize(
    ("words", "stored"),
    [
        (("nfa",), NfaThreshold(form="tree")),
        (("nfa-tree", "--log-nfa", "-2"), NfaThreshold(form="tree", log_nfa=-2.0)),
    ],
)
def test_calibrate_sets_the_limit_without_images_and_keeps_what_was_fitted(
    bundle: Bundle, words: tuple[str, ...], stored: NfaThreshold
) -> None:
    done = flowedge("calibrate", bundle.path, "--threshold", *words)
    assert done.status == 0, done.stderr
    assert f"by the tree form is below {stored.log_nfa:g}" in done.stdout.replace("\n", " ")
    thresholds = open_bundle(bundle.path).manifest.graphs[0].thresholds
    assert thresholds == msgspec.structs.replace(FITTED, nfa=stored)


def test_fitting_a_quantile_afterwards_decides_again_and_a_reference_alone_does_not(
    bundle: Bundle, images: Path
) -> None:
    def nfa_after(*words: str | Path) -> NfaThreshold | None:
        done = flowedge("calibrate", bundle.path, *words)
        assert done.status == 0, done.stderr
        return open_bundle(bundle.path).manifest.graphs[0].thresholds.nfa

    assert nfa_after("--threshold", "nfa", "--data", images) == NfaThreshold(form="tree")
    assert nfa_after("--threshold", "none", "--data", images) == NfaThreshold(form="tree")
    assert nfa_after("--data", images) is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--threshold", "nfa-block"), r"block form .* again with --nfa"),
        (
            ("--threshold", "quantile"),
            "--threshold quantile is fitted on images of good parts: name their folder with --data",
        ),
        (("--threshold", "quantile", "--log-nfa", "1"), "--log-nfa belongs to --threshold nfa"),
        (("--threshold", "nfa", "--log-nfa", "nan"), "--log-nfa must be finite, got nan"),
        (
            ("--threshold", "nfa", "--image-quantile", "0.9"),
            "--image-quantile belongs to --threshold quantile, got --threshold nfa",
        ),
        (("--threshold", "nfa-bush"), "--threshold is one of .*nfa-tree.*got 'nfa-bush'"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    bundle: Bundle, words: tuple[str, ...], message: str
) -> None:
    done = flowedge("calibrate", bundle.path, *words)
    assert done.status == 2
    assert re.search(message, " ".join(done.stderr.split()))


def test_run_prints_the_regions_that_the_detector_found(bundle: Bundle, images: Path, tmp_path: Path) -> None:
    limit = 43.0  # of the three lowest values 42.0, 41.5 and 45.5: the images are noise to this tiny flow
    assert flowedge("calibrate", bundle.path, "--threshold", "nfa", "--log-nfa", str(limit)).status == 0
    out = tmp_path / "out"
    done = flowedge("run", bundle.path, images, "--json", "--out", out)
    assert done.status == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    with package.load(bundle.path) as detector:
        inspections = list(inspect_images(detector, sorted(images.glob("*.png"))))
    for line, wanted in zip(lines, inspections, strict=True):
        assert wanted.log_nfa is not None
        assert (line["log_nfa"], line["log_nfa_limit"], line["threshold"]) == (wanted.log_nfa, limit, None)
        assert line["verdict"] == ("anomalous" if wanted.log_nfa < limit else "ok")
        assert [region["area_px"] for region in line["regions"]] == [one.area_px for one in wanted.regions]
        assert sum(one.area_px for one in wanted.regions) == round(wanted.anomalous_share * 30 * 40)  # type: ignore[operator]
        assert Path(line["mask"]).is_file()
    assert [line["verdict"] for line in lines] == ["anomalous", "anomalous", "ok"]
    table = flowedge("run", bundle.path, images)
    assert "log NFA" in table.stdout


def test_doctor_says_whether_the_tree_is_compiled() -> None:
    pytest.importorskip("numba")
    assert "the NFA tree is compiled by numba" in flowedge("doctor").stdout
    assert json.loads(flowedge("doctor", "--json").stdout)["nfa_compiler"]["numba"]
