"""A change of any bit of a manifest is refused or changes nothing, and no field holds an impossible value."""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flowedge.bundle import open_bundle, replace_in_bundle, write_bundle
from flowedge.errors import BundleError
from flowedge.manifest import (
    Assumed,
    Manifest,
    NfaThreshold,
    PartScale,
    ScoreMaxima,
    Scoring,
    SourceScale,
    Threshold,
    Thresholds,
)
from flowedge.manifest_bounds import LARGEST_FLOAT32
from flowedge.manifest_json import json_from_manifest, manifest_from_json
from support.edited_manifest import sealed
from support.tiny_bundle import tiny_manifest

GOLDEN = (Path(__file__).resolve().parents[1] / "contract" / "manifest.json").read_bytes()
GOLDEN_OF_SCHEMA_1 = (Path(__file__).resolve().parents[1] / "contract" / "manifest-1.json").read_bytes()
FITTED = Thresholds(image=Threshold(value=0.0125, method="quantile", parameter=0.99, images=40))
SMALL = sealed(json.loads(json_from_manifest(tiny_manifest(family="cflow", thresholds=FITTED))))


def is_refused_or_unchanged(data: bytes, manifest: Manifest) -> bool:
    with contextlib.suppress(BundleError):
        return manifest_from_json(data) == manifest
    return True


def test_every_flip_of_one_bit_is_refused_or_changes_nothing() -> None:
    manifest = manifest_from_json(SMALL)
    for place in range(len(SMALL)):
        for bit in range(8):
            flipped = bytearray(SMALL)
            flipped[place] ^= 1 << bit
            assert is_refused_or_unchanged(bytes(flipped), manifest), f"bit {bit} of byte {place}"


@given(st.data())
@settings(max_examples=300)
def test_every_other_change_is_refused_or_changes_nothing(data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(GOLDEN)))
    end = data.draw(st.integers(start, min(len(GOLDEN), start + 20)))
    into = data.draw(st.binary(max_size=20) | st.text("0123456789.-+eE", max_size=20).map(str.encode))
    changed = GOLDEN[:start] + into + GOLDEN[end:]
    assert is_refused_or_unchanged(changed, manifest_from_json(GOLDEN))


def test_two_digits_that_change_places_are_refused() -> None:
    for found in re.finditer(rb"(\d)(\d)", GOLDEN):
        if found[1] != found[2]:
            swapped = GOLDEN[: found.start()] + found[2] + found[1] + GOLDEN[found.end() :]
            with pytest.raises(BundleError):
                manifest_from_json(swapped)


def test_a_manifest_may_be_indented_in_any_way() -> None:
    content = json.loads(GOLDEN)
    for indent in (None, 1, "\t"):
        again = json.dumps(content, indent=indent, sort_keys=True).encode()
        assert manifest_from_json(again) == manifest_from_json(GOLDEN)


@pytest.mark.parametrize(
    ("damaged", "word"),
    [
        (GOLDEN + b"}", "Extra data"),
        (GOLDEN + b"\0" * 100, "Extra data"),
        (b"\xef\xbb\xbf" + GOLDEN, "BOM"),
        (GOLDEN.decode().encode("utf-16"), "decode"),
        (GOLDEN.replace(b"bottle", b"bottl\xe9"), "decode"),
        (GOLDEN.replace(b"bottle", b"bottl\\ud800"), "surrogate"),
        (GOLDEN.replace(b"1.75", b"NaN"), "NaN"),
        (GOLDEN.replace(b"1.75", b"-Infinity"), "-Infinity"),
        (GOLDEN.replace(b"1.75", b"1e999"), "inf"),
        (GOLDEN.replace(b"1.75", b"1" * 400), "64 bits"),
        (GOLDEN.replace(b"1.75", b"1" * 5000), "manifest"),
        (GOLDEN.replace(b'\n  "sha256"', b'\n  "sha257"'), "sha256 is missing"),
        (GOLDEN.replace(b'"schema": 2', b'"schema": 1'), "sha256"),
        (b'{"schema": 2, "x": ' + b"[" * 990 + b"]" * 990 + b"}", "sha256|nested"),
        (b'{"schema": 2, "x": ' + b"[" * 9000 + b"]" * 9000 + b"}", "sha256|nested"),
        (b"", "not a FlowEdge manifest"),
        (b"[]", "not a FlowEdge manifest"),
    ],
    ids=range(17),
)
def test_what_is_no_json_of_ours_is_refused_with_the_reason(damaged: bytes, word: str) -> None:
    assert damaged != GOLDEN
    with pytest.raises(BundleError, match=rf"^manifest\.json .*({word})"):
        manifest_from_json(damaged)


@pytest.mark.parametrize("golden", [GOLDEN, GOLDEN_OF_SCHEMA_1], ids=["2", "1"])
@pytest.mark.parametrize(
    "line",
    [b'"value": 1.5,', b'"family": "cflow",', b'"keep_aspect": true,', b'"given": false,', b'"window": 5,'],
)
def test_a_field_that_is_there_twice_is_refused(golden: bytes, line: bytes) -> None:
    assert golden.count(line) == 1
    with pytest.raises(BundleError, match="twice in one object"):
        manifest_from_json(golden.replace(line, line + line))


def test_many_fields_of_one_name_cost_no_time() -> None:
    with pytest.raises(BundleError, match="twice"):
        manifest_from_json(b"{" + b",".join(b'"%d":0' % n for n in range(200_000)) + b',"7":0}')


# Bounds


def at(*path: str | int) -> Callable[[dict[str, Any], object], None]:
    """Set the field at a path of the golden manifest."""

    def put(content: Any, value: object) -> None:
        for step in path[:-1]:
            content = content[step]
        content[path[-1]] = value

    return put


IMAGE = ("graphs", 0, "thresholds", "image")
IMPOSSIBLE = [
    (at(*IMAGE, "value"), 1e308),
    (at(*IMAGE, "value"), -1e39),
    (at(*IMAGE, "parameter"), 1.5),
    (at(*IMAGE, "images"), -1),
    (at(*IMAGE, "images"), 10**12),
    (at("graphs", 0, "thresholds", "nfa", "log_nfa"), -1e308),
    (at("graphs", 0, "opset"), 1),
    (at("graphs", 0, "opset"), 400),
    (at("graphs", 0, "scoring", "reference", "level_max", 0), 1e300),
    (at("graphs", 0, "scoring", "reference", "map_max"), 0.0),
    (at("graphs", 0, "scoring", "reference", "mul_max"), 1e39),
    (at("graphs", 0, "scoring", "top_fraction"), 0.0),
    (at("graphs", 0, "scoring", "top_pixels"), 10**10),
    (at("graphs", 0, "half"), ["n" * 10_000]),
    (at("preprocessing", "mean", 1), -3000.0),
    (at("preprocessing", "std", 0), 0.0),
    (at("preprocessing", "std", 0), -0.2),
    (at("preprocessing", "std", 0), 1e308),
    (at("preprocessing", "std", 0), 1e-308),
    (at("preprocessing", "resize", 0), 10**6),
    (at("preprocessing", "crop", 0), 0),
    (at("levels", 0, "channels"), 0),
    (at("levels", 0, "channels"), 10**12),
    (at("levels", 0, "width"), 10**6),
    (at("frame_size", 0), 10**6),
    (at("nfa", "window"), 10**9),
    (at("nfa", "probability"), 0.0),
    (at("source_scale", "image", "threshold"), 1e300),
    (at("source_scale", "image", "sensitivity"), 2.0),
    (at("assumed", 0, "value"), 10**400),
    (at("assumed", 0, "why"), "w" * 100_000),
    (at("files", 0, "size"), 1 << 60),
    (at("files", 0, "sha256"), "ab" * 32 + "\n"),
    (at("created"), "yesterday"),
    (at("created"), "2025-13-02T03:04:05Z"),
    (at("created"), "2025-01-02T03:04:05Z" * 1000),
    (at("flowedge_version"), ""),
    (at("source", "file"), ""),
]


@pytest.mark.parametrize("sealing", [sealed, lambda content: json.dumps(content).encode()], ids=["2", "1"])
@pytest.mark.parametrize(("put", "value"), IMPOSSIBLE, ids=range(len(IMPOSSIBLE)))
def test_a_setting_that_no_detector_has_is_refused(
    put: Callable[[dict[str, Any], object], None],
    value: object,
    sealing: Callable[[dict[str, Any]], bytes],
) -> None:
    content = json.loads(GOLDEN if sealing is sealed else GOLDEN_OF_SCHEMA_1)
    assert manifest_from_json(sealing(content))
    put(content, value)
    with pytest.raises(BundleError, match=r"^manifest\.json"):
        manifest_from_json(sealing(content))


TAME = st.floats(-LARGEST_FLOAT32, LARGEST_FLOAT32)
NUMBERS = st.floats() | TAME | st.sampled_from([0.0, -0.0, 1e9, -1e6, LARGEST_FLOAT32, 5e-324])
# Every text, half surrogate pairs and control characters among them, and long ones.
WORDS = (
    st.text(st.characters(), max_size=30)
    | st.text(st.characters(categories=["Cs"]), min_size=1, max_size=3)
    | st.integers(1, 12_000).map(lambda size: "x" * size)
    | st.sampled_from(["\udcff.ckpt", "\x1b[31m", "é" * 200, ""])
)
SCALARS = WORDS | NUMBERS | st.booleans() | st.integers(-(10**20), 10**20)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    """Manifests that are filled with every string and number that comes from a checkpoint, a user or a network."""
    base = tiny_manifest()
    # With every field wild, hardly any manifest would be written.
    wild = draw(st.booleans())
    numbers = NUMBERS if wild else st.floats(1e-3, 1)
    words = WORDS if wild else st.text(min_size=1, max_size=200)
    scalars = SCALARS if wild else words | st.booleans() | st.integers(-(1 << 64), 1 << 64) | TAME
    optional = numbers | st.none()
    graph = msgspec.structs.replace(
        base.graphs[0],
        half=tuple(draw(st.lists(words, max_size=2))),
        scoring=Scoring(
            normalisation="fixed_reference",
            score_maxima=ScoreMaxima(
                level_max=(draw(numbers), draw(numbers)), map_max=draw(numbers), mul_max=draw(optional)
            ),
        ),
        thresholds=Thresholds(
            image=Threshold(
                value=draw(numbers), method="quantile", parameter=0.99, images=draw(st.integers(0, 10**10))
            ),
            nfa=NfaThreshold(form="tree", log_nfa=draw(numbers)),
        ),
    )
    part = PartScale(threshold=draw(optional), minimum=draw(optional), sensitivity=draw(optional))
    assumed = st.builds(
        Assumed, name=words, value=scalars | st.lists(scalars, max_size=3), given=st.booleans(), why=words
    )
    return msgspec.structs.replace(
        base,
        source=msgspec.structs.replace(base.source, file=draw(words), generation=draw(words)),
        backbone=draw(words),
        licence_note=draw(words),
        assumed=tuple(draw(st.lists(assumed, max_size=2))),
        graphs=(graph,),
        source_scale=SourceScale(rule="2.7", image=part, pixel=PartScale()),
    )


@given(manifests())
@example(msgspec.structs.replace(tiny_manifest(), licence_note="\n" * 10_000))
@settings(max_examples=200)
def test_what_is_written_is_read_back_equal_else_it_is_not_written(manifest: Manifest) -> None:
    data = None
    with contextlib.suppress(BundleError):
        data = json_from_manifest(manifest)
    assert data is None or manifest_from_json(data) == manifest


@pytest.mark.parametrize("value", [1e9, -1e6, 3.4e38, -3.4e38, 0.0, 1e-45])
def test_what_an_untrained_network_answers_can_be_a_threshold(value: float) -> None:
    manifest = tiny_manifest(thresholds=Thresholds(image=Threshold(value=value, method="quantile")))
    assert manifest_from_json(json_from_manifest(manifest)) == manifest


def test_a_file_of_a_path_too_long_for_the_manifest_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="200"):
        write_bundle(tmp_path / "b", tiny_manifest(), {"model.onnx": b"graph", "x" * 201: b"y"})
    assert list(tmp_path.iterdir()) == []


PARTS = st.text("aA0._-é/ ", min_size=1, max_size=8) | st.sampled_from(["x" * 190, "x" * 256, "..", "a"])
PATHS = st.lists(PARTS, min_size=1, max_size=3).map("/".join)


@given(st.dictionaries(PATHS, st.binary(max_size=20), max_size=3))
@settings(max_examples=60)
def test_every_bundle_that_is_written_can_be_opened(files: dict[str, bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        contents: dict[str, Path | bytes] = {**files, "model.onnx": b"graph"}
        written = None
        with contextlib.suppress(BundleError):
            written = write_bundle(Path(folder) / "b", tiny_manifest(), contents)
        assert os.listdir(folder) == ([] if written is None else ["b"])
        assert written is None or open_bundle(written.path) == written


def test_a_manifest_that_would_be_too_large_is_not_written(tmp_path: Path) -> None:
    whole = tiny_manifest()
    graph = msgspec.structs.replace(whole.graphs[0], half=("n" * 900,) * 5000)
    with pytest.raises(BundleError, match="4194304"):
        write_bundle(
            tmp_path / "b", msgspec.structs.replace(whole, graphs=(graph,)), {"model.onnx": b"graph"}
        )


# Bundles of schema 1


def test_a_bundle_of_schema_1_is_read_and_is_of_schema_2_when_it_was_rewritten(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "b", tiny_manifest(), {"model.onnx": b"graph"})
    content = json.loads((bundle.path / "manifest.json").read_bytes())
    del content["sha256"]
    content["schema"] = 1
    (bundle.path / "manifest.json").write_text(json.dumps(content))
    old = open_bundle(bundle.path)
    assert old.manifest.schema == 1
    new = replace_in_bundle(old, files={"model.onnx": b"other"})
    assert new.manifest.schema == 2
    assert open_bundle(bundle.path) == new
    assert b'"sha256"' in (bundle.path / "manifest.json").read_bytes()
