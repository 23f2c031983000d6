"""Impossible values of a preprocessing or a coupling are refused by their name in the file."""

from __future__ import annotations

import math
import os
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from flowedge.errors import CheckpointError
from flowedge.export.checkpoints import read_checkpoint
from flowedge.export.checkpoints.backbone import read_backbone_weights
from flowedge.export.checkpoints.safe_load import file_sha256, load_untrusted
from support.checkpoint_files import save
from unit.test_checkpoints_anomalib import CFLOW_HYPER, RESIZE, cflow_state, described, version_2_7

HUGE = 10**400
Step = tuple[str, Mapping[str, object]]


def normalize(mean: object = (0.5, 0.5, 0.5), std: object = (0.5, 0.5, 0.5)) -> Step:
    return "Normalize", {"mean": mean, "std": std}


def resize(size: object) -> Step:
    return "Resize", {**RESIZE[1], "size": size}


def crop(size: object) -> Step:
    return "CenterCrop", {"size": size}


def read(tmp_path: Path, *steps: Step, settings: Mapping[str, str] | None = None, **hyper: object) -> None:
    state = cflow_state(np.random.default_rng(0))
    file = version_2_7(state, {**CFLOW_HYPER, **hyper}, described(*steps))
    read_checkpoint(save(tmp_path / "model.ckpt", file), settings=settings or {})


@pytest.mark.parametrize(
    "number", [math.nan, math.inf, -math.inf, 1e300, HUGE, -HUGE, 1000, True, "0.5", None, [0.5], 0.5j]
)
def test_a_mean_that_is_no_level_of_a_pixel_is_refused(number: object, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model\.ckpt: .*Normalize has mean="):
        read(tmp_path, RESIZE, normalize(mean=[0.5, number, 0.5]))


@pytest.mark.parametrize(
    "number", [0, 0.0, -0.0, -0.2, 1e-300, 5e-324, math.nan, math.inf, 1e300, HUGE, True, "0.5", None]
)
def test_a_standard_deviation_that_divides_nothing_is_refused(number: object, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model\.ckpt: .*Normalize has std="):
        read(tmp_path, RESIZE, normalize(std=[number, 0.5, 0.5]))


@pytest.mark.parametrize("values", [(0.5,), (0.5,) * 4, (), 0.5, "abc", {"a": 1}, [[0.5] * 3]])
def test_other_than_three_numbers_are_refused(values: object, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="Normalize has mean="):
        read(tmp_path, RESIZE, normalize(mean=values))


@pytest.mark.parametrize(
    "size",
    [
        0,
        -1,
        [0, 40],
        [40, -8],
        40.0,
        [40.5, 40],
        True,
        "40",
        HUGE,
        [40, HUGE],
        16385,
        [],
        [8, 8, 8],
        math.nan,
    ],
)
def test_a_size_that_is_no_number_of_pixels_is_refused(size: object, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model\.ckpt: .*Resize's size is"):
        read(tmp_path, resize(size), normalize())
    with pytest.raises(CheckpointError, match=r"model\.ckpt: .*CenterCrop's size is"):
        read(tmp_path, RESIZE, crop(size), normalize())


@pytest.mark.parametrize(("size", "cut"), [([40, 48], [41, 48]), ([40, 48], 48), (40, 41), (40, [64, 64])])
def test_a_crop_larger_than_its_image_is_refused(size: object, cut: object, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model\.ckpt: .*crop of .* is larger than the image"):
        read(tmp_path, resize(size), crop(cut), normalize())


def test_a_crop_within_the_longer_side_is_read(tmp_path: Path) -> None:
    read(tmp_path, resize(40), crop([40, 64]), normalize())


@pytest.mark.parametrize("clamp", [1e300, 89, 1e-300, 0, -2, math.nan, math.inf, HUGE, True, "2", [2.0]])
def test_a_clamp_that_float32_cannot_compute_with_is_refused(clamp: object, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model\.ckpt: .*clamp is"):
        read(tmp_path, RESIZE, normalize(), clamp_alpha=clamp)


@pytest.mark.parametrize(
    "setting",
    [
        *(f"clamp={value}" for value in ("1e300", "89", "0", "nan", "1e-300")),
        *(f"mean=0.5,{value},0.5" for value in ("nan", "inf", "1e300", "-11")),
        *(f"std=0.5,{value},0.5" for value in ("0", "-1", "nan", "inf", "1e-300", "1e300")),
        *(f"input_size={value}" for value in ("0", "-8", "40.5", "16385", "8x8x8", "nan", "9" * 5000)),
        *(f"top_pixels={value}" for value in ("0", "-1", "1.5", "9" * 20, "9" * 5000)),
    ],
    ids=lambda setting: f"{setting:.20}",
)
def test_the_users_word_for_such_a_value_is_refused_too(setting: str, tmp_path: Path) -> None:
    name, _, value = setting.partition("=")
    with pytest.raises(CheckpointError, match=f"--set {name}="):
        read(tmp_path, RESIZE, normalize(), settings={name: value})


@pytest.mark.parametrize("sensitivity", [math.nan, math.inf, -1, 2, HUGE])
def test_a_sensitivity_that_is_no_share_is_refused(sensitivity: object, tmp_path: Path) -> None:
    file = version_2_7(cflow_state(np.random.default_rng(0)), dict(CFLOW_HYPER), described(RESIZE))
    file["anomalib_post_processor_config"] = {"image_sensitivity": sensitivity}
    with pytest.raises(CheckpointError, match=r"model\.ckpt: .*image_sensitivity"):
        read_checkpoint(save(tmp_path / "model.ckpt", file))


def test_a_threshold_beyond_float32_is_refused_by_its_name(tmp_path: Path) -> None:
    file = version_2_7(cflow_state(np.random.default_rng(0)), dict(CFLOW_HYPER), described(RESIZE))
    state = file["state_dict"]
    assert isinstance(state, dict)
    state["post_processor._image_threshold"] = torch.tensor(1e300, dtype=torch.float64)
    with pytest.raises(CheckpointError, match=r"post_processor\._image_threshold is 1e\+300"):
        read_checkpoint(save(tmp_path / "model.ckpt", file))


def test_two_dicts_of_lightning_are_not_taken_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from support.checkpoint_files import fake_class

    kind = fake_class(monkeypatch, "lightning.fabric.utilities.data", "AttributeDict")
    attribute_dict = type(
        "AttributeDict", (dict,), {"__module__": kind.__module__, "__qualname__": "AttributeDict"}
    )
    monkeypatch.setattr(sys.modules[kind.__module__], "AttributeDict", attribute_dict)
    hyper = attribute_dict(
        {f"k{n}": attribute_dict({"value": n, "other": attribute_dict({"value": -n})}) for n in range(50)}
    )
    file = version_2_7(cflow_state(np.random.default_rng(0)), dict(CFLOW_HYPER), described(RESIZE))
    file["hyper_parameters"] = hyper
    path = save(tmp_path / "model.ckpt", file)
    from flowedge.export.checkpoints.anomalib import hyperparameters_in
    from flowedge.export.checkpoints.contents import contents_of

    read_back = hyperparameters_in(contents_of(load_untrusted(path), file="model.ckpt", sha256=""))
    assert read_back == {f"k{n}": {"value": n, "other": {"value": -n}} for n in range(50)}


@pytest.mark.parametrize("name", ["model.ckpt", "weights.safetensors", "weights.pth"])
@pytest.mark.parametrize("read_file", [load_untrusted, file_sha256, read_backbone_weights])
def test_a_named_pipe_in_place_of_a_checkpoint_is_refused_at_once(
    name: str, read_file: Callable[[Path], object], tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / name)
    messages: list[str] = []

    def reads() -> None:
        try:
            read_file(tmp_path / name)
        except CheckpointError as error:
            messages.append(str(error))

    # A daemon, so that a reading that waits fails this test and does not hang the run.
    thread = threading.Thread(target=reads, daemon=True)
    thread.start()
    thread.join(timeout=30)
    assert messages
    assert messages[0].startswith(f"{tmp_path / name}: ")
    assert "named pipe" in messages[0]


def test_a_file_whose_name_is_not_utf8_is_read_and_named(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path)
    path = Path(os.fsdecode(folder + b"/m\xff\x1b.ckpt"))
    file = version_2_7(cflow_state(np.random.default_rng(0)), dict(CFLOW_HYPER), described(RESIZE))
    with path.open("wb") as opened:
        torch.save(file, opened)
    checkpoint = read_checkpoint(path)
    assert checkpoint.file == r"m\udcff\x1b.ckpt"
    assert len(file_sha256(path)) == 64
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"the file is empty") as caught:
        read_checkpoint(path)
    str(caught.value).encode("utf-8")


def test_safetensors_whose_name_is_not_utf8_are_read(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"weight": torch.arange(4.0)}, tmp_path / "plain.safetensors")
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/m\xff.safetensors"))
    (tmp_path / "plain.safetensors").rename(path)
    value = load_untrusted(path)
    assert isinstance(value, dict)
    assert torch.equal(value["weight"], torch.arange(4.0))
