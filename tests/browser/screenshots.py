"""Take the pictures of all pages for the documentation, with a finished demo as the data.

    PYTHONPATH=tests python tests/browser/screenshots.py DEMO [FOLDER]      FOLDER is docs/images/pages by default

DEMO is the folder of ``flowedge demo``. Each page is written anew by the command that a user would type. Each picture
shows the beginning of a page, at the width of a desktop and of a phone, in light and in dark.
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from PIL import Image
from playwright.sync_api import sync_playwright

from flowedge.export.demo.end_to_end import BUNDLE, EVALUATION, PHOTOS, REPORT
from support.command_line import flowedge

CHROMIUM: Final = "/usr/bin/chromium"
WINDOWS: Final = {1280: 1500, 390: 1500}
"""The height of a picture in pixels, by its width."""

QUALITY: Final = 60
FOLDER: Final = Path(__file__).resolve().parents[2] / "docs" / "images" / "pages"


def main(demo: Path, folder: Path = FOLDER) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place, sync_playwright() as playwright:
        pages = written(demo, Path(place))
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for name, page in pages.items():
            for width, height in WINDOWS.items():
                for colours in ("light", "dark"):
                    shot = taken(browser, page, width, height, colours, is_zoomed=False)
                    shot.save(folder / f"{name}-{width}-{colours}.webp", quality=QUALITY, method=6)
        zoomed = taken(browser, pages["evaluation"], 1280, 720, "light", is_zoomed=True)
        zoomed.save(folder / "zoom-1280-light.webp", quality=QUALITY, method=6)
        browser.close()
    total = sum(file.stat().st_size for file in folder.glob("*.webp"))
    print(f"wrote {len(list(folder.glob('*.webp')))} pictures, {total / 1e6:.2f} MB, into {folder}")


def written(demo: Path, place: Path) -> dict[str, Path]:
    """Write every page, and return the files by name."""
    pages = {name: place / f"{name}.html" for name in ("demo", "evaluation", "run", "gate", "bench")}
    shutil.copy(demo / REPORT, pages["demo"])
    shutil.copy(demo / EVALUATION, pages["evaluation"])
    bundle = place / BUNDLE
    shutil.copytree(demo / BUNDLE, bundle)
    good = place / "calibration"
    good.mkdir()
    for photo in (demo / PHOTOS / "train" / "good").glob("calibration_00?.png"):
        shutil.copy(photo, good)
    for words in (
        ("run", bundle, demo / PHOTOS / "test", "--html", pages["run"]),
        (
            *("bench", bundle, "--engines", "onnxruntime-cpu,openvino", "--precisions", "fp32,fp16"),
            *("--batch", "1,4", "--seconds", "0.3", "--html", pages["bench"]),
        ),
        ("calibrate", bundle, "--data", good, "--fp16"),
    ):
        done = flowedge(*words)
        if done.status:
            raise SystemExit(f"{words[0]} ended with {done.status}: {done.stderr}")
    shutil.copy(next(bundle.glob("gate.fp16.html")), pages["gate"])
    return pages


def taken(browser: Any, file: Path, width: int, height: int, colours: str, *, is_zoomed: bool) -> Image.Image:
    """Take a picture of the beginning of a page, or of its first pictures enlarged."""
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=colours, offline=True
    )
    page = context.new_page()
    page.goto(file.as_uri())
    if is_zoomed:
        page.locator("button.zoom").first.click()
        page.locator("dialog img").last.wait_for()
    shot = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    context.close()
    return shot


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
