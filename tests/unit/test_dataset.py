"""Labelled folders are listed or refused, and their pixels are read."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from flowedge.calibration.dataset import good_images, read_dataset, read_mask
from flowedge.errors import DataError
from flowedge.runtime.frames.images import read_image

GREY = np.full((4, 6), 128, np.uint8)


def write(path: Path, pixels: NDArray[np.uint8] = GREY) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Write a dataset of 4x6 images: two good, two scratched and one bent, with all masks."""
    for name in ("train/good/000.png", "train/good/001.png", "test/good/000.png", "test/good/001.jpg"):
        write(tmp_path / name)
    for name in ("scratch/000", "scratch/001", "bent/000"):
        write(tmp_path / "test" / f"{name}.png")
        write(tmp_path / "ground_truth" / f"{name}_mask.png")
    return tmp_path


def test_a_dataset_is_listed_by_class_and_name_with_its_masks(root: Path) -> None:
    dataset = read_dataset(root)
    found = [
        (
            sample.path.relative_to(root).as_posix(),
            sample.label,
            sample.is_anomalous,
            sample.mask and sample.mask.relative_to(root).as_posix(),
        )
        for sample in dataset.samples
    ]
    assert found == [
        ("test/bent/000.png", "bent", True, "ground_truth/bent/000_mask.png"),
        ("test/good/000.png", "good", False, None),
        ("test/good/001.jpg", "good", False, None),
        ("test/scratch/000.png", "scratch", True, "ground_truth/scratch/000_mask.png"),
        ("test/scratch/001.png", "scratch", True, "ground_truth/scratch/001_mask.png"),
    ]
    assert dataset.classes_without_masks == ()


def test_a_real_dataset_is_read_whole() -> None:
    folder = Path(__file__).resolve().parents[3] / "shared/data/magnetic_tile"
    if not folder.is_dir():
        pytest.skip("needs the shared magnetic tile images")
    dataset = read_dataset(folder)
    assert len(good_images(folder)) == len(dataset.samples) == 240
    assert sum(sample.mask is not None for sample in dataset.samples) == 140
    for sample in dataset.samples[::40]:
        image = read_image(sample.path)
        assert sample.mask is None or read_mask(sample.mask, image).any()


def test_the_test_folder_itself_may_be_named(root: Path) -> None:
    assert read_dataset(root / "test") == read_dataset(root)


@pytest.mark.parametrize("name", ["000.png", "000_mask.bmp", "000.TIF"])
def test_a_mask_may_have_the_images_own_name_and_another_format(root: Path, name: str) -> None:
    (root / "ground_truth/bent/000_mask.png").unlink()
    mask = write(root / "ground_truth/bent" / name)
    assert read_dataset(root).samples[0].mask == mask


def test_other_files_and_hidden_ones_are_left_alone(root: Path) -> None:
    listed = read_dataset(root)
    (root / "test/good/Thumbs.db").write_bytes(b"x")
    (root / "test/readme.png").write_bytes(b"x")
    write(root / "test/scratch/._000.png")
    assert read_dataset(root) == listed


def test_a_class_without_any_mask_is_reported_and_not_refused(root: Path) -> None:
    (root / "ground_truth/bent/000_mask.png").unlink()
    assert read_dataset(root).classes_without_masks == ("bent",)
    (root / "ground_truth/bent").rmdir()
    assert read_dataset(root).classes_without_masks == ("bent",)


def test_one_missing_mask_is_refused_by_name(root: Path) -> None:
    (root / "ground_truth/scratch/001_mask.png").unlink()
    with pytest.raises(DataError, match=r"001\.png has no mask.*001_mask\.png is missing"):
        read_dataset(root)


def test_two_masks_of_one_image_are_refused(root: Path) -> None:
    write(root / "ground_truth/scratch/001.png")
    with pytest.raises(DataError, match="could both be the mask of 001"):
        read_dataset(root)


def test_a_folder_without_test_is_refused_with_the_layout(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no test folder.*test/good"):
        read_dataset(tmp_path)
    with pytest.raises(DataError, match="no test folder"):
        read_dataset(tmp_path / "absent")


def test_a_test_folder_without_images_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "test" / "000.png")
    with pytest.raises(DataError, match=r"no images in class folders.*\.png"):
        read_dataset(tmp_path)


def test_good_images_come_from_a_plain_folder_or_from_train_good(root: Path) -> None:
    train = (root / "train/good/000.png", root / "train/good/001.png")
    assert good_images(root) == train
    assert good_images(root / "train/good") == train


def test_good_images_are_never_taken_from_the_test_images(root: Path) -> None:
    for path in (root / "train/good").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="holds no images"):
        good_images(root)
    with pytest.raises(DataError, match="is not a folder"):
        good_images(root / "absent")


@pytest.mark.parametrize(("value", "channels"), [(255, 1), (1, 1), (1, 3)])
def test_every_mask_pixel_that_is_not_zero_is_defect(tmp_path: Path, value: int, channels: int) -> None:
    pixels = np.zeros((4, 6, channels), np.uint8)
    pixels[1, 2, 0] = value
    mask = read_mask(write(tmp_path / "mask.png", pixels), np.zeros((4, 6, 3), np.uint8))
    assert np.argwhere(mask).tolist() == [[1, 2]]


def test_an_opaque_masks_alpha_is_not_defect(tmp_path: Path) -> None:
    pixels = np.zeros((4, 6, 4), np.uint8)
    pixels[..., 3] = 255
    assert not read_mask(write(tmp_path / "mask.png", pixels), np.zeros((4, 6, 3), np.uint8)).any()


def test_a_mask_of_another_size_is_refused_with_both_sizes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"mask\.png is 6x4 pixels, its image 4x6"):
        read_mask(write(tmp_path / "mask.png"), np.zeros((6, 4, 3), np.uint8))
