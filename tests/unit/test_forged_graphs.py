"""A graph that somebody damaged under fitting hashes is refused by its bundle's name, on every engine."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

import flowedge
from flowedge.bundle import Bundle, replace_in_bundle
from flowedge.errors import BundleError, FlowEdgeError
from flowedge.manifest import Preprocessing
from support.tiny_bundle import write_tiny_bundle

ENGINES = ("onnxruntime-cpu", "openvino")


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_tiny_bundle(tmp_path / "tiny.flowedge")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", [b"anomaly_map", b"level_0", b"score", b"image"])
def test_names_that_are_no_text_are_refused(bundle: Bundle, engine: str, name: bytes) -> None:
    graph = bundle.read("model.onnx")
    assert name in graph
    damaged = graph.replace(name, name[:-1] + b"\x80")
    forged = replace_in_bundle(bundle, files={"model.onnx": damaged})
    with pytest.raises(FlowEdgeError, match=r"tiny\.flowedge"):
        flowedge.load(forged.path, engine=engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_weights_that_are_cut_are_refused(bundle: Bundle, engine: str) -> None:
    graph = bundle.read("model.onnx")
    forged = replace_in_bundle(bundle, files={"model.onnx": graph[: len(graph) * 2 // 3]})
    with pytest.raises(BundleError, match=r"tiny\.flowedge"):
        flowedge.load(forged.path, engine=engine)


def test_a_preprocessing_that_the_self_test_does_not_fit_names_the_bundle(bundle: Bundle) -> None:
    preprocessing = bundle.manifest.preprocessing
    other = Preprocessing(
        resize=(1, 1),
        keep_aspect=True,
        method="float_bilinear",
        mean=preprocessing.mean,
        std=preprocessing.std,
    )
    forged = replace_in_bundle(bundle, manifest=msgspec.structs.replace(bundle.manifest, preprocessing=other))
    with pytest.raises(BundleError, match=r"tiny\.flowedge"):
        flowedge.load(forged.path, engine="onnxruntime-cpu")
