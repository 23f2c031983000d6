"""The manifest's JSON is a contract, so stored manifests stay readable and nothing is guessed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowedge.errors import BundleError
from flowedge.manifest import (
    SCHEMA,
    Assumed,
    ColourScale,
    FrameCheck,
    FrameRange,
    GraphFile,
    LevelInfo,
    Manifest,
    NfaOutputs,
    NfaThreshold,
    PartScale,
    Preprocessing,
    ScoreMaxima,
    Scoring,
    Source,
    SourceScale,
    StoredFile,
    Threshold,
    Thresholds,
)
from flowedge.manifest_json import json_from_manifest, manifest_from_json
from flowedge.manifest_thresholds import HistoryEntry, ThresholdChange
from support.edited_manifest import sealed

GOLDEN = Path(__file__).resolve().parents[1] / "contract" / "manifest.json"
GOLDEN_OF_SCHEMA_1 = GOLDEN.with_name("manifest-1.json")

MANIFEST = Manifest(
    schema=SCHEMA,
    flowedge_version="0.1.0",
    created="2025-01-02T03:04:05Z",
    family="cflow",
    source=Source(repository="anomalib", generation="2.7", file="bottle.ckpt", sha256="ab" * 32),
    backbone="resnet18",
    image_size=(256, 320),
    levels=(LevelInfo(channels=128, height=32, width=40), LevelInfo(channels=256, height=16, width=20)),
    preprocessing=Preprocessing(
        resize=(288, 288),
        keep_aspect=True,
        method="pil_lanczos",
        crop=(256, 320),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    ),
    graphs=(
        GraphFile(
            precision="fp32",
            file="model.onnx",
            opset=18,
            scoring=Scoring(
                normalisation="fixed_reference",
                score_maxima=ScoreMaxima(level_max=(-0.5, 0.25), map_max=1.75),
            ),
            thresholds=Thresholds(
                image=Threshold(value=1.5, method="quantile", parameter=0.99, images=40),
                pixel=Threshold(value=1.25, method="manual"),
                nfa=NfaThreshold(form="block", log_nfa=-2.0),
            ),
            colours=ColourScale(low=0.5, high=2.25),
        ),
        GraphFile(
            precision="fp16",
            file="model.fp16.onnx",
            opset=18,
            scoring=Scoring(normalisation="per_image"),
            half=("backbone/*",),
            fp32_islands=("backbone/conv1",),
        ),
    ),
    assumed=(
        Assumed(name="clamp_alpha", value=1.9, given=False, why="The checkpoint does not hold it."),
        Assumed(name="layers", value=["layer2", "layer3"], given=True, why="From the command line."),
    ),
    source_scale=SourceScale(
        rule="2.7",
        image=PartScale(threshold=0.5, minimum=0.25, maximum=1.5, sensitivity=0.5),
        pixel=PartScale(),
    ),
    nfa=NfaOutputs(energies=True, window=5, probability=0.9),
    frame_size=(480, 640),
    pixel_range=(0.0, 4095.0),
    frame_check=FrameCheck(
        rate=0.001, images=40, ranges=(FrameRange(quantity="red mean", low=40.25, high=180.5),)
    ),
    threshold_history=(
        HistoryEntry(
            moment="2025-01-03T04:05:06+00:00",
            by="ann@line-3",
            command="flowedge calibrate",
            flowedge_version="0.1.0",
            reason="the first batch",
            images=40,
            images_sha256="12" * 32,
            changes=(
                ThresholdChange(
                    precision="fp32",
                    before=None,
                    after=Thresholds(image=Threshold(value=1.625, method="f1", images=40)),
                ),
            ),
            merged=2,
        ),
    ),
    licence_note="The backbone was trained on ImageNet.",
    files=(
        StoredFile(path="model.fp16.onnx", size=2, sha256="cd" * 32),
        StoredFile(path="model.onnx", size=4, sha256="ef" * 32),
    ),
)


def edited(edit: Callable[[dict[str, Any]], object]) -> bytes:
    """The golden JSON after one change, with the hash that fits it."""
    content = json.loads(GOLDEN.read_bytes())
    edit(content)
    return sealed(content)


def test_the_golden_file_is_read_as_the_manifest_it_was() -> None:
    assert manifest_from_json(GOLDEN.read_bytes()) == MANIFEST


def test_a_manifest_from_before_the_number_of_false_alarms_is_still_read() -> None:
    def remove(manifest: dict[str, Any]) -> None:
        del manifest["nfa"], manifest["graphs"][0]["thresholds"]["nfa"]

    older = manifest_from_json(edited(remove))
    assert (older.nfa, older.graphs[0].thresholds.nfa) == (None, None)


def test_a_manifest_from_before_the_colour_scale_is_still_read() -> None:
    older = manifest_from_json(edited(lambda manifest: manifest["graphs"][0].pop("colours")))
    assert older.graphs[0].colours is None


def test_a_manifest_from_before_the_history_of_thresholds_is_still_read() -> None:
    assert (
        manifest_from_json(edited(lambda manifest: manifest.pop("threshold_history"))).threshold_history == ()
    )


def test_a_history_that_is_longer_than_any_is_refused() -> None:
    with pytest.raises(BundleError, match="length <= 100"):
        manifest_from_json(edited(lambda m: m.update(threshold_history=m["threshold_history"] * 101)))


@pytest.mark.parametrize("high", [0.5, 0.25])
def test_a_colour_scale_without_a_range_is_refused(high: float) -> None:
    with pytest.raises(BundleError, match="the low end of a colour scale is below the high one"):
        manifest_from_json(edited(lambda manifest: manifest["graphs"][0]["colours"].update(high=high)))


def test_the_golden_file_of_schema_1_is_read_as_the_manifest_it_was() -> None:
    graphs = tuple(msgspec.structs.replace(graph, colours=None) for graph in MANIFEST.graphs)
    assert manifest_from_json(GOLDEN_OF_SCHEMA_1.read_bytes()) == msgspec.structs.replace(
        MANIFEST, schema=1, pixel_range=None, frame_check=None, graphs=graphs, threshold_history=()
    )


def test_the_manifest_is_written_as_the_golden_file() -> None:
    assert json_from_manifest(MANIFEST).decode() == GOLDEN.read_text(encoding="utf-8")


def test_a_manifest_and_its_parts_cannot_be_changed() -> None:
    for record in (MANIFEST, MANIFEST.source, MANIFEST.graphs[0].thresholds, MANIFEST.files[0]):
        field = record.__struct_fields__[0]
        with pytest.raises(AttributeError):
            setattr(record, field, getattr(record, field))


def test_the_graph_of_a_precision_is_found_and_a_missing_one_is_named() -> None:
    assert MANIFEST.graph("fp16").file == "model.fp16.onnx"
    with pytest.raises(BundleError, match=r"no int8 graph\. It has fp32, fp16"):
        MANIFEST.graph("int8")
    with pytest.raises(BundleError, match=r"no precision 'foo'\. Choose one of the bundle's: fp32, fp16\.$"):
        MANIFEST.graph("foo")


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda m: m.update(schema=3), r"schema 3, and this FlowEdge reads schema 1 and 2\. Install a newer"),
        (
            lambda m: m.update(schema=0),
            r"schema 0, and this FlowEdge reads schema 1 and 2\. Export the bundle",
        ),
        (lambda m: m.update(schema="1"), "Expected `int`, got `str`"),
        (lambda m: m.update(schema=True), "Expected `int`, got `bool`"),
        (lambda m: m.pop("schema"), "missing required field `schema`"),
        (lambda m: m.pop("family"), "missing required field `family`"),
        (lambda m: m.update(colour="blue"), "unknown field `colour`"),
        (lambda m: m["graphs"][0]["thresholds"].update(video={}), "unknown field `video`"),
        (lambda m: m.update(family="pangu"), "Invalid enum value 'pangu'"),
        (lambda m: m["graphs"][0].update(precision="fp8"), "Invalid enum value 'fp8'"),
        (lambda m: m.update(image_size=[256]), "length 2"),
        (lambda m: m.update(image_size=[0, 256]), ">= 1"),
        (lambda m: m.update(image_size=[256, 100_000]), "<= 16384"),
        (lambda m: m["files"][0].update(size=-1), ">= 0"),
        (lambda m: m["files"][0].update(sha256="AB" * 32), "matching regex"),
        (lambda m: m["files"][0].update(path=""), "length >= 1"),
        (lambda m: m["graphs"].append(m["graphs"][0]), "listed twice: fp32, fp16, fp32"),
        (lambda m: m.update(graphs=[]), "at least one level and one graph"),
        (lambda m: m.update(levels=[]), r"scoring.reference has \d levels, got 0"),
        (
            lambda m: m["graphs"][0]["scoring"].update(reference=None),
            "fp32 graph's scoring, scoring.reference must be there exactly",
        ),
        (
            lambda m: m["graphs"][0]["scoring"].update(normalisation="none"),
            "fp32 graph's scoring, normalisation 'none' does not suit",
        ),
        (lambda m: m.update(family="uflow"), "does not suit uflow"),
        (
            lambda m: m["graphs"][0]["scoring"]["reference"].update(level_max=[1.0]),
            "scoring.reference has 1 levels, got 2",
        ),
        (lambda m: m["source_scale"].update(rule="3.0"), "Invalid enum value '3.0'"),
        (lambda m: m["source_scale"].update(rule="0.x-cdf"), "0.x-cdf needs both thresholds and log_std"),
        (lambda m: m["nfa"].update(window=0), ">= 1"),
        (lambda m: m["nfa"].update(probability=1.0), "< 1.0"),
        (lambda m: m["graphs"][0]["thresholds"]["nfa"].update(form="bush"), "Invalid enum value 'bush'"),
        (
            lambda m: m["graphs"][0]["scoring"]["reference"].update(map_max=None),
            "Expected `float`, got `null`",
        ),
    ],
)
def test_what_does_not_fit_the_schema_is_refused_with_the_reason(
    edit: Callable[[dict[str, Any]], object], reason: str
) -> None:
    with pytest.raises(BundleError, match=reason):
        manifest_from_json(edited(edit))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_is_not_finite_is_neither_read_nor_written(value: float) -> None:
    with pytest.raises(BundleError):
        manifest_from_json(edited(lambda m: m["graphs"][0]["scoring"]["reference"].update(map_max=value)))
    reference = ScoreMaxima(level_max=(0.0, value), map_max=1.0)
    scoring = Scoring(normalisation="fixed_reference", score_maxima=reference)
    graph = msgspec.structs.replace(MANIFEST.graphs[0], scoring=scoring)
    manifest = msgspec.structs.replace(MANIFEST, graphs=(graph,))
    with pytest.raises(
        BundleError, match=r"graphs\[0\]\.scoring\.reference\.level_max\[1\], and only finite"
    ):
        json_from_manifest(manifest)


def test_a_number_too_large_for_a_float_is_refused() -> None:
    text = GOLDEN.read_text(encoding="utf-8")
    assert text.count("1.75") == 1
    with pytest.raises(BundleError):
        manifest_from_json(text.replace("1.75", "1e999").encode())


@given(st.binary(max_size=100) | st.text(max_size=100).map(str.encode))
def test_what_is_not_a_manifest_is_refused(data: bytes) -> None:
    with pytest.raises(BundleError, match=r"^manifest\.json"):
        manifest_from_json(data)


def test_a_manifest_of_endless_depth_is_refused() -> None:
    with pytest.raises(BundleError, match=r"^manifest\.json"):
        manifest_from_json(b'{"schema":2,"levels":' + b"[" * 200_000)


@given(st.integers(0, len(GOLDEN.read_bytes()) - 3))
def test_a_manifest_that_was_cut_is_refused(size: int) -> None:
    with pytest.raises(BundleError, match=r"^manifest\.json"):
        manifest_from_json(GOLDEN.read_bytes()[:size])
