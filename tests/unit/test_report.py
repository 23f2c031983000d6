"""The parts of all pages: text is inert, charts are to scale, and what is kept has a bound."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import html
import json
import re
from collections.abc import Sequence
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from flowedge.runtime.colours import PaintedValues, heatmap
from flowedge.runtime.report.charts import Bar, Series, bars, histogram, lines, points, ticks_to
from flowedge.runtime.report.markup import Markup, data_block, element
from flowedge.runtime.report.pictures import MostUrgent, mask_address, whole_map
from flowedge.runtime.report.run_report import common_folder
from flowedge.runtime.report.shell import page_of, section
from flowedge.runtime.report.tables import Column, image_table, table

EVIL = "</script><script>alert(1)</script>\u202e\udcff\x00\"'><img src=x onerror=alert(2)>&amp;"


def test_text_is_escaped_wherever_it_stands() -> None:
    made = element("p", EVIL, title=EVIL)
    assert "<script" not in made
    assert "<img" not in made
    assert re.findall(r"<(\w+)", made) == ["p"]
    made.encode("utf-8")  # a name may hold bytes that are no UTF-8
    shown = html.unescape(made)
    assert "\\u202e" in shown
    assert "\\udcff" in shown
    assert "\\x00" in shown


def test_markup_is_not_escaped_again_and_an_attribute_may_be_left_out() -> None:
    assert (
        element("p", Markup("<b>x</b>"), hidden=True, id=None, class_="a")
        == '<p hidden class="a"><b>x</b></p>'
    )


def test_no_text_ends_a_block_of_data() -> None:
    block = data_block("rows", ["</script>", "<!--", "\u2028"])
    assert block.count("<") == 2  # the tags of the element
    inside = block[block.index(">") + 1 : block.rindex("<")]
    assert json.loads(inside) == ["</script>", "<!--", "\u2028"]


def test_the_policy_of_a_page_allows_its_own_style_and_script_alone() -> None:
    page = page_of("title", [section("part", "text")])
    policy = html.unescape(re.findall(r'Content-Security-Policy" content="([^"]*)"', page)[0])
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for kind in ("style", "script"):
        (content,) = re.findall(rf"<{kind}>(.*?)</{kind}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert not re.search(
        r"\sstyle=|\son\w+=|https?:", re.sub(r"<(style|script)>.*?</\1>", "", page, flags=re.DOTALL)
    )


def svg_of(made: str) -> ET.Element:
    return ET.fromstring(re.findall(r'<svg viewBox="0 0 480.*</svg>', made, re.DOTALL)[0])


def test_a_histogram_counts_every_value_and_places_the_threshold_to_scale() -> None:
    rng = np.random.default_rng(3)
    good, bad = rng.uniform(0, 1, 20).tolist(), rng.uniform(0.5, 2, 30).tolist()
    made = histogram(
        "Scores",
        [Series(name="good", style="good", x=good), Series(name="bad", style="bad", x=bad)],
        "score",
        limit=0.75,
    )
    drawn = svg_of(made)
    for style, count in (("good", 20), ("bad", 30)):
        tips = [one.findtext("title") or "" for one in drawn.iter("rect") if one.get("class") == style]
        assert sum(int(tip.rpartition(" ")[2]) for tip in tips) == count
    (limit,) = [float(one.attrib["x1"]) for one in drawn.iter("line") if one.get("class") == "limit"]
    edges = [float(one.attrib["x"]) for one in drawn.iter("rect")]
    low, high = min(good + bad), max(good + bad)
    assert (limit - min(edges)) / (480 - 14 - min(edges)) == pytest.approx(
        (0.75 - low) / (high - low), abs=5e-3
    )


def test_one_value_far_away_does_not_squeeze_the_others_into_one_bar() -> None:
    made = histogram("Scores", [Series(name="good", style="good", x=[*np.linspace(1, 2, 200), 1e6])], "score")
    assert len(list(svg_of(made).iter("rect"))) > 10
    assert "and above" in made


def test_bars_and_clouds_bear_every_number() -> None:
    names = [Bar(name=EVIL, value=value, shown="x", style="c0") for value in (0.0, 4.0, float("inf"), -1.0)]
    widths = [float(one.attrib["width"]) for one in svg_of(bars("Blocks", names, "ms")).iter("rect")]
    assert widths[1] == widths[2] == max(widths)
    assert widths[0] == widths[3] == 0
    assert points("Empty", [Series(name="a", style="c0", x=[], y=[])], "x", "y") == ""
    flat = points("Flat", [Series(name="a", style="c0", x=[1.0], y=[2.0])], "x", "y", is_log=True)
    assert "nan" not in flat
    assert "nan" not in lines("One", [Series(name="a", style="c0", x=[0.0], y=[0.0])], "x", "y")


@pytest.mark.parametrize("top", [0.0, 1e-9, 0.3, 1.0, 7.0, 1234.0])
def test_ticks_reach_the_top_in_round_steps(top: float) -> None:
    ticks = ticks_to(top)
    assert ticks[0] == 0
    assert ticks[-1] >= top
    assert 2 <= len(ticks) <= 8


def test_a_long_curve_is_drawn_with_few_points() -> None:
    x = np.linspace(0, 1, 50_000)
    assert (
        len(lines("Long", [Series(name="a", style="c0", x=x.tolist(), y=(x**2).tolist())], "x", "y")) < 20_000
    )


def test_a_table_has_a_caption_and_leaves_out_what_is_empty() -> None:
    made = table("The caption", ("name", ">number", "nothing"), [("a", 1, ""), ("b", 2, "")], sortable=True)
    assert "<caption>The caption</caption>" in made
    assert made.count("<th ") == 2
    assert 'role="region"' in made


def test_the_rows_of_images_are_compact_and_inert() -> None:
    rows: Sequence[Sequence[str | float | None]] = [(f"{EVIL}{n}", n / 7, None) for n in range(3)]
    columns = [
        Column(name="image", kind="name"),
        Column(name="score", kind="number"),
        Column(name="x", kind="text"),
    ]
    made = image_table("Images", columns, rows, {1: ["data:image/png;base64,AAAA", None]}, ("image", "map"))
    content = json.loads(re.findall(r'<script type="application/json" id="rows">(.*?)</script>', made)[0])
    assert [one["name"] for one in content["columns"]] == ["image", "score"]
    assert len(content["rows"]) == 3
    assert content["pictures"] == {"1": ["data:image/png;base64,AAAA", None]}


def test_the_most_urgent_things_stay_in_order() -> None:
    kept: MostUrgent[int] = MostUrgent(3)
    for number, urgency in enumerate((5.0, 1.0, 9.0, 5.0, 7.0)):
        assert kept.would_keep((urgency,)) == (number < 3 or urgency > 1.0)
        kept.add((urgency,), number)
    assert kept.kept() == [2, 4, 0]
    assert not kept.is_all


def test_one_pixel_of_a_large_mask_stays_visible() -> None:
    import cv2

    mask = np.zeros((4000, 3000), np.bool_)
    mask[1234, 567] = True
    data = base64.b64decode(mask_address(mask).partition(",")[2])
    shown = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    assert shown is not None
    assert shown.shape == (384, 288)
    assert shown.max() == 255


@pytest.mark.parametrize(
    ("names", "folder"),
    [
        (["/a/b/1.png", "/a/b/2.png"], "/a/b/"),
        (["/a/b/1.png", "/a/bc/1.png"], "/a/"),
        (["a.png", "b.png"], ""),
        (["/a/1.png"], ""),
        (["x/1.png", "/x/1.png"], ""),
    ],
)
def test_the_common_folder_of_names_ends_with_a_slash(names: list[str], folder: str) -> None:
    assert common_folder(names) == folder


def test_a_whole_map_has_colours_above_the_threshold_alone() -> None:
    values = np.array([[0.0, 0.9, 1.0, 1.1, np.nan]], np.float32)
    painted = PaintedValues(values=values, low=0.0, high=2.0, threshold=1.0, title="anomaly map")
    below, near, at, above, unseen = whole_map(painted)[0].astype(int)
    assert all(len({*pixel}) == 1 for pixel in (below, near, at, unseen))
    assert below[0] < near[0] <= at[0]
    assert len({*above}) == 3
    without = whole_map(dataclasses.replace(painted, threshold=None))
    assert np.array_equal(without, heatmap(values, 0.0, 2.0))
