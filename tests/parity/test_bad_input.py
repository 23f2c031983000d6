"""Bad input ends every command with status 2 and one clear message, and leaves no file behind."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from support.command_line import Finished, flowedge
from support.small_cflow import small_cflow_checkpoint


def listing(folder: Path) -> dict[str, int]:
    """Return every file and folder below a folder, hidden ones too, with its size."""
    return {
        str(path.relative_to(folder)): path.stat().st_size if path.is_file() else -1
        for path in folder.rglob("*")
    }


def assert_refused(done: Finished, *words: str) -> None:
    """Check status 2, nothing on stdout, and one message on stderr that holds the words."""
    assert done.status == 2, done
    assert done.stdout == ""
    message = done.stderr.strip()
    assert message.startswith("flowedge: "), message
    assert "\n" not in message, message
    assert "Traceback" not in message
    for word in words:
        assert word in message, message


# Checkpoints


def changed(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    """Return a function that writes the small CFLOW with a fault in it."""

    def write(path: Path) -> None:
        checkpoint = small_cflow_checkpoint()
        change(checkpoint)
        torch.save(checkpoint, path)

    return write


def first_weight(checkpoint: dict[str, Any]) -> str:
    names: list[str] = list(checkpoint["state_dict"])
    return next(name for name in names if name.endswith("subnet.0.weight"))


def misshape(checkpoint: dict[str, Any]) -> None:
    name = first_weight(checkpoint)
    checkpoint["state_dict"][name] = checkpoint["state_dict"][name][:, 1:].clone()


def poison(checkpoint: dict[str, Any]) -> None:
    checkpoint["state_dict"][first_weight(checkpoint)][0, 0] = torch.nan


def lose_a_tensor(checkpoint: dict[str, Any]) -> None:
    del checkpoint["state_dict"][first_weight(checkpoint)]


def lose_the_backbone(checkpoint: dict[str, Any]) -> None:
    state = checkpoint["state_dict"]
    checkpoint["state_dict"] = {name: value for name, value in state.items() if ".encoder." not in name}


def name_another_backbone(checkpoint: dict[str, Any]) -> None:
    checkpoint["hyper_parameters"]["backbone"] = "resnet17"


def lose_a_bias(checkpoint: dict[str, Any]) -> None:
    del checkpoint["state_dict"]["model.decoders.1.module_list.0.subnet.2.bias"]


def lose_the_values(checkpoint: dict[str, Any]) -> None:
    name = first_weight(checkpoint)
    checkpoint["state_dict"][name] = checkpoint["state_dict"][name].to("meta")


def shorten_the_condition(checkpoint: dict[str, Any]) -> None:
    state = checkpoint["state_dict"]
    for name in [name for name in state if "decoders.1." in name and name.endswith("subnet.0.weight")]:
        state[name] = state[name][:, 2:].clone()


def clamp_nothing(checkpoint: dict[str, Any]) -> None:
    checkpoint["hyper_parameters"]["clamp_alpha"] = 0


def truncated(path: Path) -> None:
    torch.save(small_cflow_checkpoint(), path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


class RunsCode:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("true",)


CHECKPOINTS: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "text": (lambda path: path.write_text("not a checkpoint"), ("model.ckpt",)),
    "empty": (lambda path: path.write_bytes(b""), ("model.ckpt", "empty")),
    "noise": (lambda path: path.write_bytes(bytes(range(256)) * 64), ("model.ckpt",)),
    "a folder": (lambda path: path.mkdir(), ("model.ckpt", "folder")),
    "absent": (lambda _path: None, ("model.ckpt", "does not exist")),
    "truncated": (truncated, ("model.ckpt",)),
    "runs code": (lambda path: path.write_bytes(pickle.dumps(RunsCode())), ("posix.system",)),
    "unknown model": (
        lambda path: torch.save(torch.nn.Linear(3, 4).state_dict(), path),
        ("no checkpoint of a known model", "cflow"),
    ),
    "a tensor": (lambda path: torch.save(torch.zeros(3), path), ("model.ckpt",)),
    "wrong shape": (changed(misshape), ("level 0", "subnet")),
    "NaN weight": (changed(poison), ("NaN",)),
    "a tensor less": (changed(lose_a_tensor), ("subnet",)),
    "no backbone": (changed(lose_the_backbone), ("--backbone-weights",)),
    "a bias less": (changed(lose_a_bias), ("lacks flow.1.0.subnet.2.bias",)),
    "no values": (changed(lose_the_values), ("subnet.0.weight", "no values")),
    "half a position code": (changed(shorten_the_condition), ("level 1", "78 channels", "multiple of 4")),
    "clamp of zero": (changed(clamp_nothing), ("clamp is 0", "positive")),
    "unknown backbone": (changed(name_another_backbone), ("resnet17",)),
}


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_a_checkpoint_that_cannot_be_exported_is_refused(case: str, tmp_path: Path) -> None:
    write, words = CHECKPOINTS[case]
    write(tmp_path / "model.ckpt")
    before = listing(tmp_path)
    done = flowedge("export", "model.ckpt", "-o", "model.flowedge", cwd=tmp_path)
    assert_refused(done, *words)
    assert listing(tmp_path) == before


@pytest.mark.parametrize("change", [lose_a_bias, lose_the_values, shorten_the_condition, clamp_nothing])
def test_info_refuses_such_a_checkpoint_too(change: Callable[[dict[str, Any]], None], tmp_path: Path) -> None:
    changed(change)(tmp_path / "model.ckpt")
    assert_refused(flowedge("info", tmp_path / "model.ckpt"))


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--set", "no_such_setting=1"), "no_such_setting"),
        (("--set", "clamp=-1"), "clamp"),
        (("--set", "clamp=0"), "a positive number"),
        (("--set", "clamp=nan"), "a positive number"),
        (("--set", "clamp"), "clamp"),
        (("--set", "layers=layer1,layer3"), "layer"),
        (("--image-size", "0", "64"), "64"),
        (("--image-size", "4", "4"), "Give --image-size 5 5 or larger"),
        (("--backbone-weights", "absent.pth"), "absent.pth"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_wrong_option_is_refused(
    options: tuple[str, ...], word: str, small_checkpoint: Path, tmp_path: Path
) -> None:
    assert_refused(flowedge("export", small_checkpoint, *options, cwd=tmp_path), word)
    assert listing(tmp_path) == {}


# Where the bundle goes


def test_a_place_that_is_taken_is_refused_and_left_as_it_is(small_checkpoint: Path, tmp_path: Path) -> None:
    taken = tmp_path / "small.flowedge"
    taken.mkdir()
    (taken / "precious.txt").write_text("keep me")
    before = listing(tmp_path)
    assert_refused(flowedge("export", small_checkpoint, "-o", taken), "exists already")
    assert listing(tmp_path) == before


@pytest.mark.parametrize(
    ("target", "word"),
    [
        ("no/such/folder/small.flowedge", "no/such/folder is not a folder"),
        ("/proc/small.flowedge", "/proc/small.flowedge"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused(
    target: str, word: str, small_checkpoint: Path, tmp_path: Path
) -> None:
    assert_refused(flowedge("export", small_checkpoint, "-o", target, cwd=tmp_path), word)
    assert listing(tmp_path) == {}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("a small disk needs the right to mount one")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_reported_and_left_empty(small_checkpoint: Path, small_disk: Path) -> None:
    assert_refused(flowedge("export", small_checkpoint, "-o", small_disk / "small.flowedge"), "space")
    assert listing(small_disk) == {}


# Images

SQUARE = np.full((40, 50, 3), 128, np.uint8)


def png(image: np.ndarray[Any, Any]) -> bytes:
    return bytes(cv2.imencode(".png", image)[1])


IMAGES: dict[str, tuple[bytes | None, tuple[str, ...]]] = {
    "absent": (None, ("does not exist",)),
    "empty": (b"", ("empty",)),
    "text": (b"not an image", ("frame.png",)),
    "cut off": (png(SQUARE)[:-20], ("frame.png", "cut off")),
    "damaged": (png(SQUARE)[:60] + b"\0\0\0\0" + png(SQUARE)[64:], ("frame.png", "damaged")),
    "16 bits": (png(SQUARE.astype(np.uint16) * 257), ("frame.png", "8 bits")),
}


@pytest.mark.parametrize("case", IMAGES)
def test_an_image_that_cannot_be_read_is_refused(case: str, small_bundle: Path, tmp_path: Path) -> None:
    content, words = IMAGES[case]
    if content is not None:
        (tmp_path / "frame.png").write_bytes(content)
    before = listing(tmp_path)
    done = flowedge("run", small_bundle, "frame.png", "--out", "heatmaps", cwd=tmp_path)
    assert_refused(done, *words)
    assert listing(tmp_path) == before


def test_a_folder_without_images_is_refused(small_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing to see")
    assert_refused(flowedge("run", small_bundle, tmp_path), "no images")


def test_one_bad_image_among_good_ones_is_reported_and_the_others_are_inspected(
    small_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(png(SQUARE))
    (tmp_path / "b.png").write_bytes(b"")
    (tmp_path / "c.png").write_bytes(png(SQUARE))
    done = flowedge("run", small_bundle, tmp_path, "--json")
    assert done.status == 1
    assert [line.count('"not_inspected"') for line in done.stdout.splitlines()] == [0, 1, 0]
    assert "b.png" in done.stderr


def test_calibration_with_an_unreadable_image_leaves_the_bundle_as_it_was(
    small_bundle: Path, tmp_path: Path
) -> None:
    bundle = tmp_path / "small.flowedge"
    shutil.copytree(small_bundle, bundle)
    good = tmp_path / "good"
    good.mkdir()
    (good / "a.png").write_bytes(png(SQUARE))
    (good / "b.png").write_bytes(png(SQUARE)[:-20])
    before = listing(tmp_path), (bundle / "manifest.json").read_bytes()
    assert_refused(flowedge("calibrate", bundle, "--data", good), "b.png")
    assert (listing(tmp_path), (bundle / "manifest.json").read_bytes()) == before


# Bundles


def lose_the_graph(bundle: Path) -> None:
    (bundle / "model.onnx").unlink()


def damage_the_graph(bundle: Path) -> None:
    data = bytearray((bundle / "model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / "model.onnx").write_bytes(data)


def lose_the_manifest(bundle: Path) -> None:
    (bundle / "manifest.json").unlink()


def make_it_newer(bundle: Path) -> None:
    text = (bundle / "manifest.json").read_text()
    (bundle / "manifest.json").write_text(text.replace('"schema": 2', '"schema": 99'))


BUNDLES: dict[str, tuple[Callable[[Path], None], str]] = {
    "no graph": (lose_the_graph, "model.onnx"),
    "one bit flipped": (damage_the_graph, "model.onnx"),
    "no manifest": (lose_the_manifest, "manifest.json"),
    "of a newer version": (make_it_newer, "schema 99"),
    "absent": (shutil.rmtree, "no such folder"),
}


@pytest.mark.parametrize(
    ("command", "case"),
    [  # an absent path may as well be a checkpoint's for info
        pair for pair in itertools.product(("info", "verify", "run"), BUNDLES) if pair != ("info", "absent")
    ],
)
def test_a_damaged_bundle_is_refused(command: str, case: str, small_bundle: Path, tmp_path: Path) -> None:
    change, word = BUNDLES[case]
    bundle = tmp_path / "small.flowedge"
    shutil.copytree(small_bundle, bundle)
    change(bundle)
    (tmp_path / "frame.png").write_bytes(png(SQUARE))
    before = listing(tmp_path)
    arguments = (command, bundle, tmp_path / "frame.png") if command == "run" else (command, bundle)
    assert_refused(flowedge(*arguments), word)
    assert listing(tmp_path) == before


# Files that must survive


def test_a_calibration_that_fails_leaves_the_bundle_as_it_was(small_bundle: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(small_bundle, tmp_path / "small.flowedge")
    photos = tmp_path / "data" / "train" / "good"
    photos.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(4):
        (photos / f"{number}.png").write_bytes(png(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)))
    assert flowedge("calibrate", bundle, "--data", photos).status == 0
    before = (bundle / "manifest.json").read_bytes()
    good = tmp_path / "data" / "test" / "good"
    shutil.copytree(photos, good)
    bad = tmp_path / "data" / "test" / "scratch"
    bad.mkdir()
    (bad / "0.png").write_bytes(png(SQUARE)[:60])
    assert_refused(flowedge("calibrate", bundle, "--data", tmp_path / "data", "--threshold", "f1"), "0.png")
    assert (bundle / "manifest.json").read_bytes() == before
    assert flowedge("verify", bundle).status == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "small.flowedge"]


def test_a_bundle_is_calibrated_from_inside_its_folder(small_bundle: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(small_bundle, tmp_path / "small.flowedge")
    (tmp_path / "good").mkdir()
    (tmp_path / "good" / "0.png").write_bytes(png(SQUARE))
    done = flowedge("calibrate", ".", "--data", tmp_path / "good", cwd=bundle)
    assert done.status == 0, done
    assert flowedge("verify", bundle).status == 0


def test_names_of_files_are_printed_as_they_are(small_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "lot[" / "3]"
    folder.mkdir(parents=True)
    (folder / "[red]\x1b.png").write_bytes(png(SQUARE))
    (folder / os.fsdecode(b"\xff.png")).write_bytes(png(SQUARE))
    shown = flowedge("run", small_bundle, tmp_path)
    assert shown.status == 0, shown
    assert f"{folder}/[red]\\x1b.png\n" in shown.stdout
    lines = flowedge("run", small_bundle, tmp_path, "--json").stdout.splitlines()
    assert len([json.loads(line) for line in lines]) == 2


def test_pictures_of_an_earlier_run_neither_stay_nor_are_inspected(
    small_bundle: Path, tmp_path: Path
) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(png(SQUARE))
    for _ in range(2):
        done = flowedge("run", small_bundle, tmp_path, "--json", "--out", tmp_path)
        assert len(done.stdout.splitlines()) == 2
    assert (tmp_path / "a.png.overlay.png").exists()
    (tmp_path / "a.png").write_bytes(png(SQUARE)[:60])
    assert flowedge("run", small_bundle, tmp_path, "--out", tmp_path).status == 1
    assert not (tmp_path / "a.png.overlay.png").exists()
    assert (tmp_path / "b.png.overlay.png").exists()


def test_a_single_unreadable_image_has_its_line_of_json(small_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    done = flowedge("run", small_bundle, tmp_path / "a.png", "--json")
    assert done.status == 2
    assert json.loads(done.stdout)["verdict"] == "not_inspected"
