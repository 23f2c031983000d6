"""Names of extractors are read as people write them, and also where the trainer left out the layers."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import timm

from flowedge.errors import CheckpointError
from flowedge.export.backbones.convolutional import stage_names
from flowedge.export.checkpoints import Checkpoint, read_checkpoint
from flowedge.export.checkpoints.network_names import current_name
from flowedge.export.checkpoints.settings import network_name
from support.checkpoint_files import cflow_state, prefixed, save

SIZE = {"input_size": "64"}


def read(path: Path, *, settings: dict[str, str] | None = None, **hyper: object) -> Checkpoint:
    stored = {"backbone": "resnet18", "layers": ["layer1", "layer2"], **hyper}
    file = save(
        path / "model.ckpt", {"state_dict": prefixed("model.", cflow_state()), "hyper_parameters": stored}
    )
    return read_checkpoint(file, settings={**SIZE, **(settings or {})})


@pytest.mark.parametrize(
    "written",
    [
        "resnet18",
        "resnet18.a1_in1k",
        "resnet18.fb_swsl_ig1b_ft_in1k",
        "timm/resnet18.a1_in1k",
        "timm/resnet18",
        "hf-hub:timm/resnet18.a1_in1k",
        "hf_hub:timm/resnet18.a1_in1k",
        "hf-hub:timm/resnet18.a1_in1k@main",
        "tv_resnet18",
        "gluon_resnet18_v1b",
        "ssl_resnet18",
        "swsl_resnet18",
        "ResNet18",
        "RESNET18",
        " resnet18 ",
        "ResNet18_Weights.IMAGENET1K_V1",
        "ResNet18_Weights.DEFAULT",
        "torchvision.models.resnet18",
        "torchvision/resnet18",
        "torchvision.models.resnet.resnet18",
        "torchvision.models.ResNet18_Weights.DEFAULT",
    ],
)
def test_a_network_is_found_however_its_name_is_written(written: str, tmp_path: Path) -> None:
    assert read(tmp_path, backbone=written).hyperparameters["backbone"] == "resnet18"
    chosen = read(tmp_path, settings={"backbone": written}, backbone="nothing-known")
    assert chosen.hyperparameters["backbone"] == "resnet18"


@pytest.mark.parametrize(
    ("written", "today"),
    [
        ("wide_resnet50_2.tv_in1k", "wide_resnet50_2.tv_in1k"),
        ("Wide_ResNet50_2_Weights.IMAGENET1K_V2", "wide_resnet50_2"),
        ("tv_resnext50_32x4d", "resnext50_32x4d.tv_in1k"),
        ("gluon_resnet50_v1c", "resnet50c.gluon_in1k"),
        ("tf_efficientnet_b5_ns", "tf_efficientnet_b5.ns_jft_in1k"),
        ("EfficientNet_B5_Weights.DEFAULT", "efficientnet_b5"),
        ("MobileNet_V3_Large_Weights.IMAGENET1K_V1", "mobilenet_v3_large"),
        ("mcait", "mcait"),
        ("cait_m48_448.fb_dist_in1k", "cait_m48_448.fb_dist_in1k"),
    ],
)
def test_other_networks_get_the_name_that_timm_gives_them_today(written: str, today: str) -> None:
    assert current_name(network_name(written)) == today


def test_every_name_that_timm_has_replaced_leads_to_a_network_that_it_has() -> None:
    from timm.models import _registry

    table = {old: new for old, new in _registry._deprecated_models.items() if new}
    assert len(table) > 100
    for old, new in table.items():
        assert current_name(network_name(old)) == new
        assert timm.is_model(new.partition(".")[0])


def test_a_renamed_network_is_built_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "layer1" in stage_names(current_name("tv_resnet34").partition(".")[0])


@pytest.mark.parametrize(
    ("written", "near"),
    [
        ("resnet81", "resnet18"),
        ("wideresnet50_2", "wide_resnet50_2"),
        ("efficientnet-b5", None),
        ("resnet_18", "resnet18"),
    ],
)
def test_an_unknown_network_is_refused_with_the_nearest_names(
    written: str, near: str | None, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError) as caught:
        read(tmp_path, backbone=written)
    assert written in str(caught.value)
    assert near is None or near in str(caught.value)
    assert "--set backbone=" in str(caught.value)


@pytest.mark.parametrize(
    "address", ["hf-hub:someone/resnet18", "local-dir:/tmp/resnet18", "timm/../resnet18"]
)
def test_a_model_of_somebody_elses_needs_the_users_word(address: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="--set backbone="):
        read(tmp_path, backbone=address)
    checkpoint = read(tmp_path, settings={"backbone": "resnet18"}, backbone=address)
    assert checkpoint.hyperparameters["backbone"] == "resnet18"


@pytest.mark.parametrize(
    "layers",
    [
        ["layer1", "layer2", "layer9"],
        ["layer0", "layer1", "layer2"],
        ("a", "layer1", "layer2.0", "layer2", "b"),
    ],
)
def test_layers_that_the_network_lacks_are_left_out_as_the_trainer_did(
    layers: object, tmp_path: Path
) -> None:
    checkpoint = read(tmp_path, layers=layers)
    assert checkpoint.hyperparameters["layers"] == ("layer1", "layer2")
    account = next(a for a in checkpoint.assumed if a.name == "layers")
    assert not account.given
    for left_out in set(layers) - {"layer1", "layer2"}:  # type: ignore[call-overload]
        assert left_out in account.why


def test_layers_may_be_numbers_of_stages_as_the_trainer_allows(tmp_path: Path) -> None:
    assert read(tmp_path, layers=[1, 2]).hyperparameters["layers"] == ("layer1", "layer2")
    assert read(tmp_path, layers=[-4, -3]).hyperparameters["layers"] == ("layer1", "layer2")


def test_layers_that_do_not_fit_the_levels_are_refused_with_those_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        read(tmp_path, layers=["layer1", "layerX", "layerY"])
    for name in ("layerX", "layerY", "layer3", "layer4", "--set layers="):
        assert name in str(caught.value)
