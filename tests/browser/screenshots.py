"""Take the pictures of all pages for the documentation, with a finished demo as the data.

    PYTHONPATH=tests python tests/browser/screenshots.py DEMO [FOLDER]      FOLDER is docs/images/pages by default

DEMO is the folder of ``flowedge demo``. Each page is written anew by the command that a user would type. The pages of
the inspection station come from a station that has judged the demo's photographs and goes on running. Each picture
shows the beginning of a page, at the width of a desktop and of a phone, in light and in dark.
"""

from __future__ import annotations

import contextlib
import io
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from PIL import Image
from playwright.sync_api import sync_playwright

from flowedge.export.demo.end_to_end import BUNDLE, EVALUATION, PHOTOS, REPORT
from support.command_line import flowedge

CHROMIUM: Final = "/usr/bin/chromium"
WINDOWS: Final = {1280: 1500, 390: 1500}
"""The height of a picture in pixels, by its width."""

STATION: Final = {
    "station": "",
    "station-record": "records/31",
    "station-records": "records",
    "station-changes": "changes",
}
"""The addresses of a station's pages, by the name of the picture."""

TABLES: Final = {
    "source": 'name = "camera-1"',
    "area": "frame_size = [96, 96]\ninspect = [[[4, 4], [92, 4], [92, 92], [4, 92]]]",
    "page": 'port = 0\ntoken_file = "token"\nstale_after_s = 86400.0',
}
"""What the station's file gets besides the defaults, by its tables."""

SEEN: Final = "scratch/00[0-4].png"
"""The photographs with defects that the station judges last."""

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
        with running_station(demo, Path(place)) as address:
            for name, path in STATION.items():
                for width, height in WINDOWS.items():
                    for colours in ("light", "dark"):
                        shot = taken(browser, f"{address}{path}", width, height, colours, is_zoomed=False)
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


@contextlib.contextmanager
def running_station(demo: Path, place: Path) -> Iterator[str]:
    """Run a station on some photographs of the demo, and give the address of its page after the last verdict."""
    photos = place / "photos"
    photos.mkdir()
    wanted = [
        *sorted((demo / PHOTOS / "test" / "good").glob("*.png"))[:30],
        *sorted((demo / PHOTOS / "test").glob(SEEN)),
    ]
    for number, photo in enumerate(wanted):
        shutil.copy(photo, photos / f"tile_{number:03d}.png")
    file = place / "station.toml"
    made = flowedge("station", "init", place / BUNDLE, "-o", file, "--source", photos, "--name", "line-3")
    if made.status:
        raise SystemExit(f"station init ended with {made.status}: {made.stderr}")
    (place / "token").write_text("a-token-for-the-pictures\n", encoding="ascii")
    text = file.read_text(encoding="utf-8")
    for table, keys in TABLES.items():
        text = text.replace(f"\n[{table}]\n", f"\n[{table}]\n{keys}\n", 1)
    file.write_text(text, encoding="utf-8")
    words = [sys.executable, "-c", "from flowedge.cli import main; main()", "station", "run", str(file)]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            found = next(one for line in process.stderr if (one := re.search(r"http://\S+", line)))
            while f"flowedge_journal_last_record {len(wanted)}\n" not in _read(f"{found[0]}metrics"):
                time.sleep(0.2)
            yield found[0]
        finally:
            process.terminate()


def _read(address: str) -> str:
    with urllib.request.urlopen(address, timeout=20) as answer:
        text: str = answer.read().decode()
    return text


def taken(
    browser: Any, file: Path | str, width: int, height: int, colours: str, *, is_zoomed: bool
) -> Image.Image:
    """Take a picture of the beginning of a page, or of its first pictures enlarged."""
    is_file = isinstance(file, Path)
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=colours, offline=is_file
    )
    page = context.new_page()
    page.goto(file.as_uri() if isinstance(file, Path) else file)
    if not is_file:
        page.evaluate(
            "Promise.all([...document.images].map((one) => { one.loading = 'eager'; return one.decode(); }))"
        )
    if is_zoomed:
        page.locator("button.zoom").first.click()
        page.locator("dialog img").last.wait_for()
    shot = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    context.close()
    return shot


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
