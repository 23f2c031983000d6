"""A run takes the right files of a folder, and one bad entry neither ends it nor stays unreported."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image

from flowedge.calibration.dataset import good_images, read_dataset
from flowedge.calibration.evaluation import evaluate
from flowedge.errors import DataError, ImageError
from flowedge.manifest import Threshold, Thresholds
from flowedge.runtime.detector import Detector
from flowedge.runtime.frames.finding import IMAGE_SUFFIXES, find_images
from flowedge.runtime.frames.images import read_image
from flowedge.runtime.inspection import inspect_images
from flowedge.runtime.opening.unproven import open_unproven
from flowedge.runtime.render import Style, draw
from support.command_line import Finished, flowedge
from support.picture_files import encoded, photograph
from support.tiny_bundle import write_tiny_bundle

pytestmark = pytest.mark.usefixtures("without_proof")

GOOD = photograph(16, 24)
PNG = encoded(GOOD, "PNG")
LIMITS = Thresholds(
    image=Threshold(value=1e30, method="manual"), pixel=Threshold(value=1e30, method="manual")
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("tiny") / "tiny.flowedge", thresholds=LIMITS).path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "good.png").write_bytes(PNG)
    return folder


def verdicts(done: Finished) -> dict[str, str]:
    """Return the verdict of each line of JSON, by the image's name."""
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {Path(line["image"]).name: line["verdict"] for line in lines}


def test_a_half_jpeg_in_a_folder_is_not_inspected_and_stderr_is_ours(
    bundle: Path, photos: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = encoded(GOOD, "JPEG", quality=95)
    (photos / "whole.jpg").write_bytes(whole)
    (photos / "cut.jpg").write_bytes(whole[: int(len(whole) * 0.8)] + b"\xff\xd9")
    done = flowedge("run", bundle, photos, "--json")
    assert verdicts(done) == {"cut.jpg": "not_inspected", "good.png": "ok", "whole.jpg": "ok"}
    assert done.status == 1
    assert capfd.readouterr() == ("", "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("not inspected: ")
    assert "cut.jpg is damaged" in line


@pytest.mark.parametrize("kind", ["PPM", "TIFF", "BMP", "WEBP", "JPEG"])
def test_every_format_of_the_trainers_is_inspected(kind: str, bundle: Path, photos: Path) -> None:
    names = {
        "PPM": ["a.ppm", "b.PGM", "c.pnm"],
        "TIFF": ["a.tif", "b.TIFF"],
        "JPEG": ["a.jpg", "b.jpe", "c.jfif"],
    }
    for name in names.get(kind, [f"a.{kind.lower()}"]):
        image = GOOD.convert("L") if name.endswith("PGM") else GOOD
        (photos / name).write_bytes(encoded(image, kind))
    done = flowedge("run", bundle, photos, "--json")
    assert set(verdicts(done).values()) == {"ok"}
    assert (done.status, done.stderr) == (0, "")
    assert {Path(name).suffix.lower() for name in verdicts(done)} <= IMAGE_SUFFIXES


def test_an_image_of_another_format_is_reported_as_not_inspected(bundle: Path, photos: Path) -> None:
    (photos / "moving.gif").write_bytes(encoded(GOOD.quantize(9), "GIF"))
    (photos / "raw.dng").write_bytes(b"II*\0")
    (photos / "phone.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    (photos / "apng.png").write_bytes(encoded(GOOD, "PNG", save_all=True, append_images=[GOOD.rotate(180)]))
    (photos / "pages.tif").write_bytes(encoded(GOOD, "TIFF", save_all=True, append_images=[GOOD]))
    (photos / "no_suffix").write_bytes(PNG)
    (photos / "picture.bak").write_bytes(encoded(GOOD, "JPEG"))
    for name, start in (("heif", b"\0\0\0\x18ftypheic"), ("photoshop", b"8BPS\0\1"), ("exr.bak", b"v/1\1")):
        (photos / name).write_bytes(start + bytes(40))
    done = flowedge("run", bundle, photos, "--json")
    found = verdicts(done)
    assert sorted(found) == sorted(path.name for path in photos.iterdir())
    assert {name for name, verdict in found.items() if verdict == "ok"} == {
        "good.png",
        "no_suffix",
        "picture.bak",
    }
    assert done.status == 1
    table = flowedge("run", bundle, photos)
    assert "8 not_inspected, 3 ok" in table.stdout
    for name in (
        "moving.gif",
        "raw.dng",
        "phone.HEIC",
        "apng.png",
        "pages.tif",
        "heif",
        "photoshop",
        "exr.bak",
    ):
        assert name in table.stderr
    assert "several pictures" in table.stderr


def test_what_is_no_image_is_named_and_counted_and_changes_no_status(bundle: Path, photos: Path) -> None:
    for number in range(7):
        (photos / f"note {number}.txt").write_text("a note")
    (photos / "good.png.overlay.png").write_bytes(PNG)
    done = flowedge("run", bundle, photos, "--json")
    assert (done.status, list(verdicts(done))) == (0, ["good.png"])
    assert "good.png.overlay.png" in done.stderr
    assert "note 0.txt" in done.stderr
    assert "3 more" in done.stderr


def test_hidden_folders_are_no_part_of_a_folder_nor_a_class_of_a_dataset(tmp_path: Path) -> None:
    for name in ("test/good/a.png", "test/good/.trash/b.png", "test/.checkpoints/c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(PNG)
    for source in (tmp_path, f"{tmp_path}/**"):
        assert [path.name for path in find_images(source).images] == ["a.png"]
    assert [sample.label for sample in read_dataset(tmp_path).samples] == ["good"]
    assert [path.name for path in find_images(tmp_path / "test" / ".checkpoints").images] == ["c.png"]


def special(photos: Path) -> dict[str, Callable[[Path], None]]:
    return {
        "dangling link": lambda path: path.symlink_to("nowhere.png"),
        "link to itself": lambda path: path.symlink_to(path.name),
        "pipe": lambda path: os.mkfifo(path),
        "link to a device": lambda path: path.symlink_to("/dev/zero"),
        "link to a terminal": lambda path: path.symlink_to("/dev/tty"),
        "link to a folder": lambda path: path.symlink_to(photos),
        "empty": lambda path: path.touch(),
    }


@pytest.mark.parametrize("kind", special(Path()))
def test_an_entry_that_is_no_file_is_not_inspected_and_the_others_are(
    kind: str, bundle: Path, photos: Path
) -> None:
    special(photos)[kind](photos / "bad.png")
    for source in (photos, f"{photos}/*.png", f"{photos}/**/*.png", f"{photos}/**"):
        done = flowedge("run", bundle, source, "--json")
        expected = {"bad.png": "not_inspected", "good.png": "ok"}
        if kind == "link to a folder" and str(source).endswith("/*.png") and "**" not in str(source):
            expected = {"good.png": "ok"}  # a pattern of files does not match a folder
        assert verdicts(done) == expected, source
        assert done.status == (1 if "bad.png" in expected else 0)
    if kind != "link to a folder":
        alone = flowedge("run", bundle, photos / "bad.png", "--json")
        assert (alone.status, verdicts(alone)) == (2, {"bad.png": "not_inspected"})


def test_a_pattern_over_loops_of_links_ends_and_finds_each_file_once(photos: Path) -> None:
    (photos / "deep" / "er").mkdir(parents=True)
    (photos / "deep" / "er" / "x.png").write_bytes(PNG)
    for name in ("a", "b", "c"):
        (photos / "deep" / name).symlink_to(photos)
        (photos / "deep" / "er" / name).symlink_to("..")
    found = find_images(f"{photos}/**/**/*.png").images
    files = [path.relative_to(photos).as_posix() for path in found if not path.is_symlink()]
    assert files == ["deep/er/x.png", "good.png"]
    assert len(found) == len(files) + 6  # each link is reported


def refuse_to_list_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse to list each folder with the name closed, as for a user without permission. Root may list any folder."""

    def refusing(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: str | Path | int = ".") -> Any:
            # Python lists an open folder by its descriptor where it removes the files of a test.
            if not isinstance(path, int) and os.path.basename(path) == "closed":
                raise PermissionError(13, "Permission denied", os.fspath(path))
            return real(path)

        return call

    for name in ("listdir", "scandir"):
        monkeypatch.setattr(os, name, refusing(getattr(os, name)))


@pytest.mark.parametrize("pattern", ["", "/**/*.png", "/**", "/*/*.png"])
def test_a_folder_that_cannot_be_listed_is_not_inspected_and_the_others_are(
    pattern: str, bundle: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "closed").mkdir()
    (photos / "open").mkdir()
    (photos / "open" / "part.png").write_bytes(PNG)
    refuse_to_list_closed(monkeypatch)
    done = flowedge("run", bundle, f"{photos}{pattern}", "--json")
    assert verdicts(done)["closed"] == "not_inspected"
    assert verdicts(done)["part.png"] == "ok"
    assert done.status == 1
    assert "closed cannot be read: Permission denied" in done.stderr
    with pytest.raises(DataError, match="Permission denied"):
        find_images(photos / "closed")
    with pytest.raises(DataError, match="Permission denied"):
        good_images(photos / "closed")


def test_a_name_without_room_for_its_pictures_ends_is_shortened(bundle: Path, photos: Path) -> None:
    names = ["p" * 251 + ".png", "p" * 250 + "q.png", "ü" * 125 + ".png"]
    for name in names:
        (photos / name).write_bytes(PNG)
    out = photos.parent / "out"
    done = flowedge("run", bundle, photos, "--json", "--out", out)
    assert (done.status, done.stderr) == (0, "")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    written = {Path(line[kind]).name for line in lines for kind in ("overlay", "mask")}
    assert len(written) == 2 * (len(names) + 1)
    assert written == {path.name for path in out.iterdir()}
    (photos / names[0]).write_bytes(b"")
    assert flowedge("run", bundle, photos, "--out", out).status == 1
    assert len(list(out.iterdir())) == 2 * len(names)


def test_pictures_that_cannot_be_written_leave_the_verdict_and_say_so(bundle: Path, photos: Path) -> None:
    (photos / "sub").mkdir()
    (photos / "sub" / "part.png").write_bytes(PNG)
    out = photos.parent / "out"
    out.mkdir()
    (out / "sub").write_text("in the way")
    done = flowedge("run", bundle, photos, "--json", "--out", out)
    assert verdicts(done) == {"good.png": "ok", "part.png": "ok"}
    assert done.status == 1
    assert "inspected: " in done.stderr
    assert "cannot be made" in done.stderr
    refused = flowedge("run", bundle, photos, "--json", "--out", out / "sub")
    assert refused.status == 2
    assert "is a file" in json.loads(refused.stdout)["error"]["message"]


HOSTILE = ["two\nlines.png", "\x1b[31mred.png", "tab\t.png", os.fsdecode(b"\xff\xfe.png"), "\u202egnp.png"]


def test_no_name_reaches_the_terminal_raw(bundle: Path, photos: Path) -> None:
    for name in HOSTILE:
        (photos / name).write_bytes(PNG)
        (photos / f"{name}.txt").write_bytes(b"no image")
        (photos / f"broken {name}").write_bytes(b"")
    for options in ([], ["--json"]):
        done = flowedge("run", bundle, photos, "--out", photos.parent / "out", *options)
        assert done.status == 1
        shown = done.stdout + done.stderr
        assert all(letter == "\n" or letter.isprintable() for letter in shown)
        assert "lines.png" in shown


def test_a_name_longer_than_the_system_allows_is_an_error_of_one_line(bundle: Path) -> None:
    for source in ("x" * 5000 + ".png", "x" * 5000, "x" * 300 + "/*.png", "x/" * 5000):
        done = flowedge("run", bundle, source)
        assert done.status == 2
        assert len(done.stderr.splitlines()) == 1


def dataset(folder: Path, defect: str = "scratch") -> Path:
    for place in (folder / "train" / "good", folder / "test" / "good", folder / "test" / defect):
        place.mkdir(parents=True)
        for number in range(3):
            (place / f"{number}.png").write_bytes(PNG)
    return folder


def test_a_class_folder_whose_name_is_no_utf_8_is_evaluated(bundle: Path, tmp_path: Path) -> None:
    root = dataset(tmp_path / "data", os.fsdecode(b"kratzer\xe4"))
    done = flowedge("eval", bundle, root, "--json")
    assert done.status == 0, done
    assert [one["label"] for one in json.loads(done.stdout)["classes"]] == ["kratzer\\udce4"]
    assert "kratzer" in flowedge("eval", bundle, root).stdout


def test_an_image_that_cannot_be_read_is_counted_by_eval_and_refused_by_calibrate(
    bundle: Path, tmp_path: Path
) -> None:
    root = dataset(tmp_path / "data")
    whole = encoded(GOOD, "JPEG", quality=95)
    cut = whole[: int(len(whole) * 0.8)] + b"\xff\xd9"
    (root / "test" / "good" / "half.jpg").write_bytes(cut)
    (root / "test" / "good" / "moving.gif").write_bytes(b"GIF89a")
    (root / "test" / "good" / "nowhere.png").symlink_to("gone")
    done = flowedge("eval", bundle, root, "--json")
    result = json.loads(done.stdout)
    assert (done.status, result["good_images"], result["not_inspected"]) == (1, 3, 3)
    assert result["not_inspected_files"] == [
        f"test/good/{name}" for name in ("half.jpg", "moving.gif", "nowhere.png")
    ]
    assert any("half.jpg is damaged" in note for note in result["notes"])
    for name, content in {"half.jpg": cut, "moving.gif": b"GIF89a"}.items():
        path = root / "train" / "good" / name
        path.write_bytes(content)
        assert path in good_images(root)
        with pytest.raises(ImageError, match=name):
            read_image(path)
        path.unlink()


def test_a_class_that_cannot_be_listed_and_a_mask_that_cannot_be_read_end_no_evaluation(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = dataset(tmp_path / "data", "marked")
    marked = root / "ground_truth" / "marked"
    marked.mkdir(parents=True)
    (root / "test" / "closed").mkdir()
    for number in range(3):
        (marked / f"{number}.png").write_bytes(PNG)
    (marked / "0.png").write_bytes(PNG[:100])
    (marked / "1.png").unlink()
    os.mkfifo(marked / "1.png")
    refuse_to_list_closed(monkeypatch)
    done = flowedge("eval", bundle, root, "--json")
    result = json.loads(done.stdout)
    assert done.status == 1
    assert result["not_inspected_files"] == ["test/closed", "test/marked/0.png", "test/marked/1.png"]
    assert (result["good_images"], result["anomalous_images"]) == (3, 1)
    assert result["pixel_f1"] is not None
    assert any("closed" in note and "Permission denied" in note for note in result["notes"])


def test_a_mask_may_have_more_than_8_bits(tmp_path: Path) -> None:
    root = dataset(tmp_path / "data")
    masks = root / "ground_truth" / "scratch"
    masks.mkdir(parents=True)
    for number in range(3):
        mask = np.zeros((16, 24), np.uint16)
        mask[4:9, 5:11] = 1 + number
        Image.fromarray(mask).save(masks / f"{number}_mask.png")
    samples = read_dataset(root)
    opened = flowedge_bundle(tmp_path)
    with opened as detector:
        found = evaluate(detector, samples)
    assert found.pixel_auroc is not None


def flowedge_bundle(folder: Path) -> Detector:
    bundle = write_tiny_bundle(folder / "tiny.flowedge")
    return Detector(bundle, open_unproven("onnxruntime-cpu", bundle, "fp32"))


def test_two_links_to_one_file_are_two_images(photos: Path, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (photos / name).symlink_to("good.png")
    out = tmp_path / "out"
    with flowedge_bundle(tmp_path) as detector:
        lines = list(inspect_images(detector, find_images(photos).images, out=out))
    assert {path.name for path in out.iterdir()} == {f"{n}.png.overlay.png" for n in ("a", "b", "good")}
    assert len({line.overlay for line in lines}) == 3


@pytest.mark.parametrize("style", get_args(Style))
def test_the_pictures_of_run_are_those_of_the_renderer_in_every_style(
    photos: Path, tmp_path: Path, style: Style
) -> None:
    # Half of the tiny graph's pixels are above this threshold.
    low = Thresholds(
        image=Threshold(value=-1e30, method="manual"), pixel=Threshold(value=-0.155, method="manual")
    )
    bundle = write_tiny_bundle(tmp_path / "tiny.flowedge", thresholds=low)
    out = tmp_path / "out"
    assert flowedge("run", bundle.path, photos, "--out", out, "--style", style).status == 0
    with Detector(bundle, open_unproven("onnxruntime-cpu", bundle, "fp32")) as detector:
        result = detector(np.asarray(GOOD))
    assert result.mask is not None
    assert result.mask.any()
    assert not result.mask.all()
    np.testing.assert_array_equal(read_image(out / "good.png.overlay.png"), draw(result, style=style))
    np.testing.assert_array_equal(read_image(out / "good.png.mask.png")[..., 1], result.mask * np.uint8(255))


def test_a_style_without_a_folder_for_pictures_is_refused(bundle: Path, photos: Path) -> None:
    done = flowedge("run", bundle, photos, "--style", "mask")
    assert done.status == 2
    assert "Add --out FOLDER" in done.stderr
    assert flowedge("run", bundle, photos, "--out", photos.parent / "o", "--style", "both").status == 2


def test_a_mask_of_an_earlier_run_goes_where_there_is_no_pixel_threshold_now(
    bundle: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert flowedge("run", bundle, photos, "--out", out).status == 0
    assert (out / "good.png.mask.png").exists()
    with flowedge_bundle(tmp_path) as detector:
        (line,) = inspect_images(detector, find_images(photos).images, out=out)
    assert (line.mask, line.problem) == (None, "")
    assert {path.name for path in out.iterdir()} == {"good.png.overlay.png"}


def test_a_counter_of_thousands_of_digits_is_sorted(tmp_path: Path) -> None:
    folder = tmp_path
    for _ in range(20):
        folder = folder / ("9" * 250)
    folder = Path(os.path.relpath(folder, tmp_path))
    assert sorted([folder / "b", folder / "a"])[0].name == "a"
    (tmp_path / ("1" * 200 + ".png")).write_bytes(PNG)
    assert len(find_images(tmp_path).images) == 1


def test_a_read_only_folder_without_pictures_of_an_earlier_run_is_not_said_to_hold_some(
    tmp_path: Path,
) -> None:
    bundle = write_tiny_bundle(tmp_path / "b").path
    Image.fromarray(np.zeros((16, 24, 3), np.uint8)).save(tmp_path / "a.png")
    out = tmp_path / "out"
    out.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", str(out)], check=False).returncode:
        pytest.skip("mounting needs root")
    try:
        done = flowedge("run", bundle, tmp_path / "a.png", "--out", out)
    finally:
        subprocess.run(["umount", str(out)], check=True)
    assert done.status == 1
    assert "Read-only file system" in done.stderr
    assert "earlier run" not in done.stderr
