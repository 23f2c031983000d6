"""A second bundle judges beside the first, delays nothing, and every flipped verdict is listed with its pictures."""

from __future__ import annotations

import datetime
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats  # type: ignore[import-untyped]

import flowedge
from flowedge.errors import SettingsError
from flowedge.manifest import Threshold, Thresholds
from flowedge.runtime.station.record import Event, Record
from flowedge.runtime.station.settings import parse_station
from flowedge.runtime.station.station import Station
from flowedge.runtime.station.watch.comparison import (
    Compared,
    ComparisonFolder,
    Pair,
    Side,
    Subject,
    comparisons_in,
    read_compared,
    read_pictures,
    summary_of,
)
from flowedge.runtime.station.watch.settings import ShadowSettings
from flowedge.runtime.station.watch.shadow import FOLDER, Shadow, job_of_shadow
from flowedge.runtime.station.watch.shadow_report import shadow_page
from support.command_line import flowedge as run_flowedge
from support.station_files import write_photos, write_station
from support.tiny_bundle import write_tiny_bundle
from support.waiting import wait_until

Pixels = NDArray[np.uint8]


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("FLOWEDGE_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "shadow-cache"))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A station's folder with a first bundle that accepts everything and a second one that accepts about half."""
    folder = tmp_path_factory.mktemp("site")
    write_station(folder, photos=20)
    limit = _median_score(folder)
    write_tiny_bundle(
        folder / "second.flowedge",
        thresholds=Thresholds(image=Threshold(value=limit, method="manual")),
        seed=1,
    )
    return folder


def _median_score(folder: Path) -> float:
    write_tiny_bundle(folder / "draft.flowedge", seed=1)
    with flowedge.load(folder / "draft.flowedge") as detector:
        return float(np.median([detector(path).score for path in sorted((folder / "photos").iterdir())]))


def _photo(site: Path, number: int) -> Pixels:
    picture = cv2.imread(str(site / f"photos/{number:04d}.png"))
    assert picture is not None
    return np.ascontiguousarray(picture[..., ::-1], np.uint8)


class _Line:
    """The first bundle, and a shadow beside it."""

    def __init__(self, site: Path, state: Path, **settings: Any) -> None:
        self.site = site
        self.events: list[Event] = []
        self.detector = flowedge.load(site / "tiny.flowedge")
        station = parse_station((site / "station.toml").read_text(), name="station.toml", folder=site)
        shadow = ShadowSettings(**{"bundle": site / "second.flowedge", **settings})

        self.shadow = Shadow(shadow, state, job_of_shadow(station, shadow), self.events.append)

    def offer(self, number: int) -> None:
        pixels = _photo(self.site, number)
        result = self.detector(pixels)
        record = Record(
            number=number + 1,
            station="s",
            run="r",
            time=datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc),
            monotonic_ns=0,
            source="photos",
            source_id=f"{number:04d}.png",
            part="<b>7</b>",
            bundle_sha256="a" * 64,
            precision="fp32",
            verdict=result.verdict,
            signal="ok",
            reason="ok",
        )
        self.shadow.offer(record, pixels, result)

    def offer_slowly(self, count: int) -> None:
        """Offer frames, each after the one before was compared."""
        for number in range(count):
            before = self.shadow.status()["frames"]
            self.offer(number)
            wait_until(lambda before=before: self.shadow.status()["frames"] > before)  # type: ignore[misc]


@pytest.fixture
def line(site: Path, tmp_path: Path) -> Iterator[Callable[..., _Line]]:
    lines: list[_Line] = []

    def make(**settings: Any) -> _Line:
        lines.append(_Line(site, tmp_path, **settings))
        return lines[-1]

    yield make
    for one in lines:
        one.shadow.close()
        one.detector.close()


def test_a_second_bundle_judges_beside_the_first_and_keeps_the_pictures_of_flips(
    line: Callable[..., _Line], site: Path, tmp_path: Path
) -> None:
    shadowed = line(most_frames=6, most_pictures=2)
    shadowed.offer_slowly(6)
    ((folder, pair),) = comparisons_in(tmp_path / FOLDER)
    compared = list(read_compared(folder))
    with flowedge.load(site / "second.flowedge") as second:
        expected = [second(_photo(site, number)) for number in range(6)]
    assert [one.second.verdict for one in compared] == [one.verdict for one in expected]
    assert [one.second.score for one in compared] == pytest.approx([one.score for one in expected], rel=1e-6)
    flips = [one for one in compared if one.is_flipped]
    assert {one.first.verdict for one in compared} == {"ok"}
    assert 2 < len(flips) < 6
    assert [one.has_pictures for one in flips] == [True, True] + [False] * (len(flips) - 2)
    assert all(str(one).startswith("data:image/jpeg") for one in read_pictures(folder, flips[0].number))
    assert pair.first.bundle_sha256 == "a" * 64
    assert pair.second.precision == "fp32"
    # The comparison ends after the wanted number of frames, also over a restart.
    shadowed.offer(7)
    wait_until(lambda: shadowed.shadow.status()["state"] == "done")
    assert [event.kind for event in shadowed.events] == ["shadow_done"]
    page = shadow_page(
        summary_of(compared),
        compared,
        lambda one: read_pictures(folder, one.number),
        [("second bundle", "<i>")],
        note="a <u>note",
    )
    assert "<b>7" not in page
    assert "<i>" not in page
    rows = json.loads(page.split('id="rows">')[1].split("</script>")[0])
    assert [row[0] for row in rows["rows"]] == [one.source_id for one in flips]
    assert len(rows["pictures"]) == 2


def test_frames_that_come_while_the_second_bundle_is_busy_are_left_out_and_none_waits(
    line: Callable[..., _Line],
) -> None:
    shadowed = line()
    for number in [*range(20)] * 10:  # long before the second engine is open
        shadowed.offer(number)
    wait_until(lambda: shadowed.shadow.status()["frames"] > 0)
    status = shadowed.shadow.status()
    assert status["of"] == 200
    assert status["frames"] <= 2


def test_a_second_bundle_that_dies_ends_only_the_comparison(line: Callable[..., _Line]) -> None:
    shadowed = line()
    shadowed.offer_slowly(1)
    (child,) = _children()
    assert os.getpriority(os.PRIO_PROCESS, child) == 19
    os.kill(child, signal.SIGKILL)
    shadowed.offer(1)
    wait_until(lambda: shadowed.shadow.status()["state"] == "failed")
    shadowed.offer(2)
    (event,) = shadowed.events
    assert (event.kind, event.level) == ("shadow_failed", "warning")
    assert "its process ended with status -9" in event.text


def _children() -> list[int]:
    """Return the processes of shadows that this process has started."""
    listed = Path(f"/proc/{os.getpid()}/task")
    found = [int(one) for task in listed.iterdir() for one in (task / "children").read_text().split()]
    return [one for one in found if b"shadow_worker" in Path(f"/proc/{one}/cmdline").read_bytes()]


def test_a_second_bundle_that_does_not_open_is_told(line: Callable[..., _Line], tmp_path: Path) -> None:
    shadowed = line(bundle=tmp_path / "missing.flowedge")
    wait_until(lambda: shadowed.shadow.status()["state"] == "failed")
    assert "missing.flowedge" in shadowed.events[0].text


def test_a_line_that_a_kill_has_cut_is_left_out_alone(tmp_path: Path) -> None:
    subject = Subject(bundle_sha256="b" * 64, precision="fp32", engine="null")
    pair = Pair(first=subject, second=subject)
    side = Side(verdict="ok", score=1.0)
    kept = ComparisonFolder(tmp_path, pair)
    for number in (1, 2):
        kept.add(_compared(number, side, side), None, None, most_pictures=0)  # type: ignore[arg-type]
    file = kept.folder / "compared.jsonl"
    file.write_bytes(file.read_bytes()[:-5])
    again = ComparisonFolder(tmp_path, pair)
    assert again.frames == 1
    again.add(_compared(3, side, side), None, None, most_pictures=0)  # type: ignore[arg-type]
    assert [one.number for one in read_compared(kept.folder)] == [1, 3]


def _compared(number: int, first: Side, second: Side) -> Compared:
    return Compared(number=number, source_id=str(number), first=first, second=second)


def test_a_summary_counts_verdicts_and_correlates_ranks() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(50, 2)).round(1)
    scores[:, 1] += 2 * scores[:, 0]
    compared = [
        _compared(
            n,
            Side(verdict="anomalous" if first > 1 else "ok", score=first),
            Side(verdict="anomalous" if second > 1 else "ok", score=second),
        )
        for n, (first, second) in enumerate(scores.tolist())
    ]
    compared.append(_compared(50, Side(verdict="not_inspected"), Side(verdict="ok", score=0.0)))
    summary = summary_of(compared)
    assert summary.frames == 51
    assert summary.rank_correlation == pytest.approx(stats.spearmanr(*scores.T)[0])
    assert summary.flipped == int(((scores[:, 0] > 1) != (scores[:, 1] > 1)).sum()) + 1
    assert summary.anomalous_first == pytest.approx((scores[:, 0] > 1).mean())
    assert summary.verdicts["not_inspected"] == {"ok": 1}


def test_both_bundles_judge_the_pictures_of_a_folder(site: Path, tmp_path: Path) -> None:
    page = tmp_path / "shadow.html"
    file, second = site / "station.toml", site / "second.flowedge"
    done = run_flowedge(
        *("station", "shadow", file, "--bundle", second, "--data", site / "photos", "--html", page, "--json")
    )
    assert done.status == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["frames"] == 20
    assert told["verdicts"] == {"ok": {"anomalous": 10, "ok": 10}}
    assert [len(told["flips"]), told["flipped"]] == [10, 10]
    assert told["rank_correlation"] is not None
    content = page.read_text()
    assert all(Path(one["source_id"]).name in content for one in told["flips"])
    assert content.count("data:image/jpeg") == 30
    told_people = run_flowedge("station", "shadow", file, "--bundle", second, "--data", site / "photos")
    assert "20 frames, 10 flipped. Anomalous: 0.0% by the first, 50.0% by the second" in told_people.stdout


def test_the_command_says_what_it_needs(site: Path) -> None:
    file = site / "station.toml"
    assert "no table [shadow]" in run_flowedge("station", "shadow", file).stderr
    missing = run_flowedge("station", "shadow", file, "--bundle", site / "second.flowedge")
    assert "holds no frames" in missing.stderr
    assert run_flowedge("station", "shadow", file, "--data", site).status == 2


def test_a_running_station_lets_the_second_bundle_judge_and_the_command_reports_on_it(
    site: Path, tmp_path: Path
) -> None:
    write_photos(tmp_path / "photos", 1)
    text = (site / "station.toml").read_text()
    for name in ("tiny", "second"):
        text = text.replace(f'"{name}.flowedge"', f'"{site / name}.flowedge"')
    text = text.replace('address = "photos"', 'address = "photos"\nwatch = true')
    file = tmp_path / "station.toml"
    file.write_text(f'{text}[shadow]\nbundle = "{site / "second.flowedge"}"\n')
    settings = parse_station(file.read_text(), name="station.toml", folder=tmp_path)
    with Station(settings, folder=tmp_path) as station:
        thread = threading.Thread(target=station.run)
        thread.start()
        number = 1
        while not station.status()["shadow"]["frames"]:
            assert number < 500
            write_photos(tmp_path / "photos", 1, first=number)
            number += 1
            time.sleep(0.1)
        drift = run_flowedge("station", "drift", file)
        assert "of 200 frames learned" in drift.stdout
        assert drift.status == 0
        assert run_flowedge("station", "drift", file, "--learn").status == 0
        station.stop()
        thread.join()
    told = run_flowedge("station", "shadow", file, "--json")
    assert told.status == 0, told.stderr
    summary = json.loads(told.stdout)
    assert summary["frames"] >= 1
    assert summary["pair"]["first"]["bundle_sha256"] != summary["pair"]["second"]["bundle_sha256"]


def test_a_shadow_of_an_unknown_product_is_refused() -> None:
    text = '[station]\nname = "a"\nstate = "s"\n[source]\naddress = "p"\n[inspect]\nbundle = "b"\n'
    shadow = '[shadow]\nbundle = "c"\nproduct = "bottle"\n'
    with pytest.raises(SettingsError, match="names no product"):
        parse_station(text + shadow, name="station.toml", folder=Path())


def test_the_settings_reach_the_process_as_they_are(site: Path) -> None:
    text = (site / "station.toml").read_text() + '[area]\nframe_size = [40, 60]\nmask = "m.png"\n'
    station = parse_station(text, name="station.toml", folder=site)
    shadow = ShadowSettings(bundle=site / "second.flowedge", precision="int8", threads=2)
    job = msgspec.json.decode(msgspec.json.encode(job_of_shadow(station, shadow)), type=dict)
    assert job["inspect"]["precision"] == "int8"
    assert job["inspect"]["threads"] == 2
    assert job["area"]["mask"] == str(site / "m.png")
    assert job["product"]["bundle"] == str(site / "second.flowedge")
