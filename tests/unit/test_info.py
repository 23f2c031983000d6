"""``flowedge info`` shows what a source is, which values were assumed and what is missing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from support.checkpoint_files import (
    State,
    aio_block,
    cross_coupling,
    prefixed,
    resnet,
    save,
    sequence,
    values,
)
from support.command_line import flowedge

IN_FILE = "in the file"


def official_cflow(rng: np.random.Generator) -> object:
    decoders = [sequence(rng, c, condition=4, kind="soft") for c in (256, 512)]
    return {"encoder_state_dict": resnet(rng), "decoder_state_dict": decoders}


def fastflow(rng: np.random.Generator, flows: str) -> State:
    state = prefixed("feature_extractor.", resnet(rng, (2, 2, 2)))
    state |= prefixed(f"{flows}.0.", sequence(rng, 6, kernel=3))
    return state | {f"norms.0.{part}": values(rng, 6, 8, 8) for part in ("weight", "bias")}


def official_fastflow(rng: np.random.Generator) -> object:
    return {"model_state_dict": fastflow(rng, "nf_flows"), "epoch": 3}


def tv_cflow(rng: np.random.Generator) -> object:
    state = prefixed("encoder.feature_extractor.", resnet(rng))
    state |= prefixed("decoders.0.", sequence(rng, 512, condition=4))
    return {"model_state_dict": state, "best_score": 0.5}


def anomalib_fastflow(rng: np.random.Generator) -> object:
    state = prefixed("model.", fastflow(rng, "fast_flow_blocks"))
    fitted = {f"post_processor.{name}": torch.tensor(0.25) for name in ("image_min", "_image_threshold")}
    return {"state_dict": state | fitted | {"post_processor.image_max": torch.tensor(2.0)},
            "hyper_parameters": {"backbone": "resnet18"}, "anomalib_components_enabled": {}}  # fmt: skip


def official_uflow(rng: np.random.Generator) -> object:
    state = prefixed("feature_extractor.extractor.", resnet(rng, (2, 2, 2)))
    for n, channels in ((0, 8), (4, 6)):
        state |= prefixed(f"flow.module_list.{n}.", aio_block(rng, channels, kernel=3))
    state["flow.module_list.2.downsample_kernel"] = torch.zeros(4, 1, 2, 2)
    for level, (channels, side) in enumerate(((5, 8), (8, 4))):
        for part in ("weight", "bias"):
            name = f"feature_extractor.feature_normalizations.{level}.{part}"
            state[name] = values(rng, channels, side, side)
    return {"state_dict": prefixed("model.", state) | {"pixel_aupro.fpr_limit": torch.tensor(0.3)}}


def official_csflow(rng: np.random.Generator) -> object:
    return prefixed("module_list.4.", cross_coupling(rng, ("s1", "s2")))


def anomalib_csflow(rng: np.random.Generator) -> object:
    nets = ("cross_convolution1", "cross_convolution2")
    state = prefixed("graph.graph.module_list.1.", cross_coupling(rng, nets))
    return {"state_dict": prefixed("model.", state)}


SOURCES: dict[str, tuple[Callable[[np.random.Generator], object], str, str, str, set[str]]] = {
    # what is saved, family, source, the extractor's weights, what is assumed besides the preprocessing
    "official CFLOW": (official_cflow, "cflow", "gudovskiy/cflow-ad, generation official", IN_FILE,
                       {"clamp", "clamp_variant"}),
    "official FastFlow": (official_fastflow, "fastflow", "gathierry/FastFlow, generation official", IN_FILE,
                          {"clamp"}),
    "TVTVision's CFLOW": (tv_cflow, "cflow", "Taitran2202/TVTVision, generation official", IN_FILE,
                          {"clamp", "top_pixels"}),
    "anomalib's FastFlow": (anomalib_fastflow, "fastflow", "anomalib, generation 2.7", IN_FILE, {"clamp"}),
    "official U-Flow": (official_uflow, "uflow", "mtailanian/uflow, generation official", IN_FILE, {"clamp"}),
    "official CS-Flow": (official_csflow, "csflow", "marco-rudolph/cs-flow, generation official",
                         "missing: give efficientnet_b5's with --backbone-weights FILE",
                         {"clamp", "padding", "use_gamma", "permutations"}),
    "bare anomalib CS-Flow": (anomalib_csflow, "csflow", "anomalib, generation unknown",
                              "missing: give efficientnet_b5's with --backbone-weights FILE",
                              {"clamp", "permutations"}),
}  # fmt: skip
PREPROCESSING = {"input_size", "resize_method", "mean", "std", "backbone"}


@pytest.mark.parametrize("name", SOURCES)
def test_info_names_the_source_what_was_assumed_and_what_is_missing(name: str, tmp_path: Path) -> None:
    made, family, source, weights, expected = SOURCES[name]
    path = save(tmp_path / "model.pt", made(np.random.default_rng(5)))
    done = flowedge("info", path)
    assert done.status == 0, done.stderr
    shown = " ".join(done.stdout.split())
    assert f"family {family} source {source}" in shown
    assert f"backbone's weights {weights}" in shown
    told = json.loads(flowedge("info", path, "--json").stdout)
    assumed = {one["name"] for one in told["assumed"]}
    assert assumed - PREPROCESSING == expected
    assert all(one["why"] and one["name"] in shown for one in told["assumed"])
    assert told["has_backbone_weights"] == (weights == IN_FILE)


def test_info_shows_what_anomalib_fitted(tmp_path: Path) -> None:
    path = save(tmp_path / "model.ckpt", anomalib_fastflow(np.random.default_rng(5)))
    shown = " ".join(flowedge("info", path).stdout.split())
    assert "anomalib 2.7: threshold 0.25, minimum 0.25, maximum 2, sensitivity 0.5" in shown
    assert json.loads(flowedge("info", path, "--json").stdout)["source_scale"]["rule"] == "2.7"


@pytest.mark.parametrize("name", ["a" * 300, "a" * 5000, f"b/{'a' * 300}"])
def test_a_name_longer_than_the_system_allows_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    done = flowedge("info", name, cwd=tmp_path)
    assert (done.status, done.stderr.count("\n")) == (2, 1)
    assert name in done.stderr
