"""Compare the graph's energies and counts with the latents of FrEIA's modules, for the five official records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray

from flowedge.bundle import open_bundle
from flowedge.export.pipeline import ExportOptions, read_model
from flowedge.manifest import NfaOutputs, level_outputs
from flowedge.runtime.nfa import exceedance_threshold, window_sides
from support.direct_nfa import direct_counts
from support.golden import PARAMETERS, exported_record
from support.half_graph import write_half
from support.oracles.original_nfa import original_block_log_nfa, original_tree_log_nfa

# A latent this close to the threshold may fall on either side: float32 sums in another order.
CLOSE = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Compared:
    """One family's graph and the same weights in FrEIA's modules, on the record's two images.

    Attributes:
        folder: The record's folder.
        graph: The exported fp32 graph.
        nfa: The graph's outputs for the number of false alarms.
        image: ``(2, 3, H, W)`` float32, the network's input.
        latents: Per level ``(2, C, h, w)`` float32, as FrEIA's modules give them.
    """

    folder: Path
    graph: Path
    nfa: NfaOutputs
    image: NDArray[np.float32]
    latents: list[NDArray[np.float32]] = field(repr=False)

    @property
    def sides(self) -> tuple[int, ...]:
        """Return the side of the window of each level."""
        return window_sides(self.nfa.window, len(self.latents))


@pytest.fixture(scope="module", params=PARAMETERS)
def compared(
    request: pytest.FixtureRequest, shared: Path, tmp_path_factory: pytest.TempPathFactory
) -> Compared:
    made = exported_record(request.param, shared, tmp_path_factory)
    source = shared / "golden" / made.record.folder
    options = ExportOptions(
        image_size=(256, 256) if "--image-size" in made.record.options else None,
        backbone_weights=None if made.record.weights is None else made.folder / made.record.weights,
    )
    with np.load(source / "golden.npz") as golden:
        image = golden["x"]
    reference: Any = read_model(made.checkpoint, options).reference_network()
    with torch.inference_mode():
        latents = [z.numpy() for z in reference.latents(torch.from_numpy(image))]
    bundle = open_bundle(made.bundle)
    assert bundle.manifest.nfa is not None
    return Compared(
        folder=source,
        graph=bundle.graph_path("fp32"),
        nfa=bundle.manifest.nfa,
        image=image,
        latents=latents,
    )


def answers(graph: Path, image: NDArray[np.float32]) -> Mapping[str, NDArray[np.float32]]:
    session = ort.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"image": image}), strict=True))


def test_a_batch_gets_the_energies_and_counts_of_freias_latents(compared: Compared) -> None:
    given = answers(compared.graph, compared.image)
    assert [name for name in given if name[-1].isdigit()] == list(
        level_outputs(compared.latents, compared.nfa)
    )
    threshold = exceedance_threshold(compared.nfa.probability)
    for level, (z, side) in enumerate(zip(compared.latents, compared.sides, strict=True)):
        count = given[f"count_{level}"][:, 0]
        wanted = np.square(z.astype(np.float64)).sum(1)
        # A family whose level is a mean of squares gives no energy besides: the number of channels is between them.
        has_energy = compared.nfa.energies
        energy = given[f"energy_{level}"] if has_energy else given[f"level_{level}"] * z.shape[1]
        energy = energy[:, 0]
        assert np.abs(energy - wanted).max() < 1e-4 * wanted.max()
        fewest, most = (
            np.stack([direct_counts(one, side, threshold * factor) for one in z])
            for factor in (1 + CLOSE, 1 - CLOSE)
        )
        assert np.all((fewest <= count) & (count <= most))
        assert (most - fewest).max() <= 0.02 * z.shape[1] * side**2  # the bounds say something
        assert count.dtype == np.float32
        np.testing.assert_array_equal(count, np.rint(count))


def test_an_images_counts_do_not_depend_on_the_batch(compared: Compared) -> None:
    batch, alone = answers(compared.graph, compared.image), answers(compared.graph, compared.image[1:])
    for level, (z, side) in enumerate(zip(compared.latents, compared.sides, strict=True)):
        difference = np.abs(batch[f"count_{level}"][1] - alone[f"count_{level}"][0]).max()
        assert difference <= 0.005 * z.shape[1] * side**2


def test_the_half_precision_graph_counts_in_float32(compared: Compared, tmp_path: Path) -> None:
    half = tmp_path / "model.fp16.onnx"
    write_half(compared.graph, half, "fp16")
    model = onnx.load(str(half))
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    constants = [n for node in model.graph.node if "counts" in node.name for n in node.input if n in types]
    assert constants
    assert onnx.TensorProto.FLOAT16 not in {types[name] for name in constants}
    given = answers(half, compared.image)
    for level, (z, side) in enumerate(zip(compared.latents, compared.sides, strict=True)):
        count = given[f"count_{level}"][:, 0]
        np.testing.assert_array_equal(count, np.rint(count))
        wanted = np.stack(
            [direct_counts(one, side, exceedance_threshold(compared.nfa.probability)) for one in z]
        )
        assert np.abs(count - wanted).max() <= 0.05 * z.shape[1] * side**2


def test_both_forms_of_the_graphs_outputs_are_the_official_maps(compared: Compared) -> None:
    if compared.folder.name != "uflow_official":
        pytest.skip("only U-Flow's implementation has an NFA to compare with")
    given = answers(compared.graph, compared.image)
    channels = [z.shape[1] for z in compared.latents]
    with np.load(compared.folder / "golden.npz") as golden:
        tree, block = golden["nfa_tree"], golden["nfa_block"]
    for index in range(len(compared.image)):
        energies = [given[f"level_{n}"][index, 0] * depth for n, depth in enumerate(channels)]
        ours = -original_tree_log_nfa(energies, channels, (256, 256))
        np.testing.assert_allclose(ours, tree[index], rtol=1e-4)
        counts = [given[f"count_{n}"][index, 0].astype(np.int64) for n in range(len(channels))]
        ours = -original_block_log_nfa(counts, channels, compared.sides, compared.nfa.probability, (256, 256))
        # A latent at the threshold may fall on either side, and moves the pixels of its window.
        assert np.mean(np.abs(ours - block[index]) > 1e-4) < 1e-3
