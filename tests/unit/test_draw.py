"""Pictures of results show what was found and nothing else, and their words can be read at every size."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import numpy as np
import pytest
from numpy.typing import NDArray

from flowedge.manifest import ColourScale, NfaThreshold
from flowedge.runtime import captions
from flowedge.runtime.colours import COLOURS, heatmap
from flowedge.runtime.lettering import Strip, text_width, wrapped
from flowedge.runtime.render import RED, draw
from flowedge.runtime.result import Result
from support.made_result import SCALE, made_result

FRAME: Final[NDArray[np.uint8]] = np.random.default_rng(0).integers(0, 256, (600, 700, 3), dtype=np.uint8)
GOOD: Final = np.full((600, 700), 1.2, np.float32)
DEFECT: Final = GOOD.copy()
DEFECT[100:200, 300:450] = 2.6
INSIDE: Final = (slice(120, 180), slice(320, 430))


class Texts(list[tuple[str, float, float, int, Strip]]):
    """The texts that were written, each with its left end, its middle, its size and its strip."""

    @property
    def words(self) -> str:
        return " | ".join(text for text, *_ in self)


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> Texts:
    written = Texts()
    before = Strip.text

    def text(self: Strip, x: float, y: float, words: str, size: int, colour: Any) -> None:
        written.append((words, x, y, size, self))
        before(self, x, y, words, size, colour)

    monkeypatch.setattr(Strip, "text", text)
    return written


def test_a_good_part_shows_its_frame_unpainted() -> None:
    result = made_result(FRAME, GOOD, verdict="ok")
    np.testing.assert_array_equal(draw(result, captions=False), FRAME)
    picture = draw(result)
    top = next(n for n in range(picture.shape[0]) if np.array_equal(picture[n], FRAME[0]))
    np.testing.assert_array_equal(picture[top : top + 600], FRAME)


def test_a_good_part_stays_unpainted_where_pixels_are_above_their_threshold(texts: Texts) -> None:
    result = made_result(FRAME, DEFECT, verdict="ok", image_threshold=2.7)
    np.testing.assert_array_equal(draw(result, captions=False), FRAME)
    draw(result)
    assert "1 region above the pixel threshold, not painted" in texts.words


def test_pixels_above_the_threshold_are_painted_on_the_scale_and_the_others_keep_the_frame() -> None:
    before = FRAME.copy()
    drawn = draw(made_result(FRAME, DEFECT), captions=False)
    np.testing.assert_array_equal(FRAME, before)
    mixed = 0.4 * FRAME[INSIDE] + 0.6 * heatmap(DEFECT, SCALE.low, SCALE.high)[INSIDE].astype(np.float64)
    np.testing.assert_allclose(drawn[INSIDE], mixed, rtol=0, atol=0.51)
    far = np.ones((600, 700), bool)
    far[80:220, 280:470] = False
    np.testing.assert_array_equal(drawn[far], FRAME[far])


def test_a_value_has_one_colour_in_every_image() -> None:
    stronger = DEFECT.copy()
    stronger[400:500, 100:200] = 40
    one, other = (draw(made_result(FRAME, m), captions=False)[INSIDE] for m in (DEFECT, stronger))
    np.testing.assert_array_equal(one, other)


def test_a_region_is_outlined_in_red_and_boxed_in_white() -> None:
    drawn = draw(made_result(np.full_like(FRAME, 90), DEFECT), captions=False)
    for line in (drawn[100, 320:430], drawn[199, 320:430], drawn[120:180, 300], drawn[120:180, 449]):
        assert (line == RED).all()
    box = [row for row in range(80, 100) if (drawn[row, 320:430] == 255).all()]
    assert box, "above the region"
    assert not (drawn[:80] == 255).any()


def test_holes_of_a_region_are_outlined_too() -> None:
    holed = DEFECT.copy()
    holed[140:160, 340:400] = 1.2
    drawn = draw(made_result(FRAME, holed), captions=False)
    assert (drawn[139, 350:390] == RED).all()
    np.testing.assert_array_equal(drawn[145:155, 345:395], FRAME[145:155, 345:395])


def test_only_the_surest_of_many_regions_have_boxes(texts: Texts) -> None:
    many = GOOD.copy()
    many[20::40, 20::40] = 2.6
    result = made_result(FRAME, many)
    count = len(result.regions)
    assert count > 200
    draw(result)
    assert f"{count} regions, boxes around the 20 surest" in texts.words


@pytest.mark.parametrize("grey", [False, True])
def test_a_frame_can_be_given_also_a_grey_one(grey: bool) -> None:
    other = np.full((600, 700) if grey else (600, 700, 3), 50, np.uint8)
    drawn = draw(made_result(FRAME, GOOD, verdict="ok"), frame=other, captions=False)
    assert drawn.shape == (600, 700, 3)
    assert (drawn == 50).all()


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (FRAME[1:], r"size of the judged frame, \(600, 700\), got \(599, 700\)"),
        (FRAME.astype(np.float32), "uint8 grey, got .* float32"),
        (FRAME[..., :2], "uint8 RGB"),
    ],
)
def test_a_frame_of_another_kind_is_refused(frame: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        draw(made_result(FRAME, GOOD), frame=frame)


def test_an_unknown_style_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="overlay, side-by-side, mask, got 'both'"):
        draw(made_result(FRAME, GOOD), style="both")  # type: ignore[arg-type]


def test_side_by_side_has_the_bare_frame_on_the_left() -> None:
    result = made_result(FRAME, DEFECT)
    drawn = draw(result, style="side-by-side", captions=False)
    np.testing.assert_array_equal(drawn[:, :700], FRAME)
    np.testing.assert_array_equal(drawn[:, -700:], draw(result, captions=False))


def test_a_mask_shows_the_anomalous_pixels_in_white() -> None:
    result = made_result(FRAME, DEFECT)
    assert result.mask is not None
    drawn = draw(result, style="mask", captions=False)
    np.testing.assert_array_equal(drawn, np.repeat(result.mask[..., None] * np.uint8(255), 3, axis=2))


def test_pixels_outside_of_a_crop_are_hatched_and_the_legend_says_so(texts: Texts) -> None:
    cropped = np.full((300, 350), 1.2, np.float32)
    result = made_result(FRAME, cropped, verdict="ok", resized=(600, 700))
    drawn = draw(result, captions=False)
    np.testing.assert_array_equal(drawn[150:450, 175:525], FRAME[150:450, 175:525])
    outside = np.isnan(result.anomaly_map)
    assert outside.any()
    darker, lines = drawn == FRAME // 2, (drawn == 150).all(axis=2)
    assert (darker.all(axis=2) | lines)[outside].all()
    assert 0.05 < lines[outside].mean() < 0.3
    draw(result)
    assert "hatched: not inspected" in texts.words


def test_a_frame_that_was_not_inspected_says_so_and_has_no_colours(texts: Texts) -> None:
    result = made_result(FRAME, DEFECT, verdict="not_inspected", problem="the frame's mean of red is 3.1")
    picture = draw(result)
    assert "not inspected | the frame's mean of red is 3.1" in texts.words
    assert "anomaly map" not in texts.words
    np.testing.assert_array_equal(draw(result, frame=FRAME * 0, captions=False)[..., 0].max(), 150)
    assert picture.shape[1] == 700


def test_without_a_threshold_all_is_painted_on_a_scale_of_the_image_and_the_picture_says_so(
    texts: Texts,
) -> None:
    result = made_result(
        FRAME * 0, DEFECT, verdict="unknown", pixel_threshold=None, image_threshold=None, colours=None
    )
    drawn = draw(result, captions=False)
    np.testing.assert_allclose(drawn[0, 0], 0.6 * COLOURS[0], rtol=0, atol=0.51)
    np.testing.assert_allclose(drawn[150, 400], 0.6 * COLOURS[255], rtol=0, atol=0.51)
    draw(result)
    assert "unknown | score 2.6" in texts.words
    assert "no threshold" in texts.words
    assert "anomaly map, colours of this image alone" in texts.words


def test_the_heading_has_verdict_score_and_threshold_and_the_bar_its_numbers(texts: Texts) -> None:
    draw(made_result(FRAME, DEFECT))
    assert texts.words == (
        "anomalous | score 2.6, threshold 2.5 | 1 region | anomaly map | threshold 2 | 1 | 3"
    )


def test_where_false_alarms_decide_the_heading_has_their_number(texts: Texts) -> None:
    result = made_result(
        FRAME,
        DEFECT,
        nfa=NfaThreshold(form="tree"),
        network_log_nfa=np.where(DEFECT > 2, -38.25, 60.0),
    )
    draw(result)
    assert texts.words == (
        "anomalous | log NFA -38.2, limit 0 | 1 region | log NFA | threshold 0 | 100 | -100"
    )


SIZES: Final = [(16, 16), (16, 1000), (700, 20), (241, 601), (480, 640), (3000, 4096)]

CASES: Final[dict[str, dict[str, Any]]] = {
    "calibrated": {},
    "uncalibrated": {"verdict": "unknown", "pixel_threshold": None, "colours": None},
    "not inspected": {
        "verdict": "not_inspected",
        "problem": "the frame's detail is 3.2, and good frames have 80.2 to 160.4. " * 3,
    },
}


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_all_words_are_inside_of_the_picture_apart_and_large_enough(
    texts: Texts, size: tuple[int, int], case: str
) -> None:
    frame = np.zeros((*size, 3), np.uint8)
    small = DEFECT[::18, ::22]
    picture = draw(made_result(frame, small, **CASES[case]))
    assert texts
    height, width = picture.shape[:2]
    for text, x, y, letter, strip in texts:
        assert letter >= 13, "can be read where a pixel of the picture is one of the screen"
        assert letter >= max(height, width) / 60 or letter == 13 or min(size) < 100, (
            "and where it is shrunk to a page"
        )
        assert x >= 0
        assert x + text_width(text, letter) <= width
        assert letter / 2 <= y <= strip.height - letter / 2
    for n, (text, x, y, letter, strip) in enumerate(texts):
        for _, other_x, other_y, _, other_strip in texts[n + 1 :]:
            if strip is other_strip and y == other_y and other_x > x:
                assert x + text_width(text, letter) < other_x, "texts of one line do not touch"


def test_a_small_frame_is_enlarged_by_a_whole_factor_and_a_large_one_is_not_resized() -> None:
    small = np.random.default_rng(1).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    drawn = draw(made_result(small, np.ones((16, 16)), verdict="ok"))
    assert drawn.shape[1] == 512
    rows = np.flatnonzero((drawn[:, ::32] == small[0]).all(axis=(1, 2)))
    np.testing.assert_array_equal(drawn[rows[0] : rows[0] + 512 : 32, ::32], small)
    assert draw(made_result(FRAME, GOOD)).shape[1] == FRAME.shape[1]


@pytest.mark.parametrize("threshold", [3.4e38, -3.4e38, 0.0, None])
@pytest.mark.parametrize("colours", [None, SCALE, ColourScale(low=-3.4e38, high=3.4e38)])
def test_numbers_at_the_ends_of_float32_are_drawn(
    threshold: float | None, colours: ColourScale | None
) -> None:
    ends = np.array([[3.4e38, -3.4e38], [0, 1e-38]], np.float32).repeat(8, 0).repeat(8, 1)
    frame = np.zeros((16, 16, 3), np.uint8)
    result = made_result(frame, ends, colours=colours, pixel_threshold=threshold)
    assert draw(result).shape[1] == 512


def test_a_buffer_that_the_camera_fills_again_does_not_change_a_drawn_picture() -> None:
    buffer = FRAME.copy()
    drawn = draw(made_result(buffer, GOOD, verdict="ok"), captions=False)
    buffer[:] = 0
    np.testing.assert_array_equal(drawn, FRAME)


def luminance(colour: tuple[int, int, int]) -> float:
    """Compute the relative luminance of WCAG 2.1."""
    share = np.array(colour) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def contrast(one: tuple[int, int, int], other: tuple[int, int, int]) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_words_have_the_contrast_that_wcag_asks_for() -> None:
    pairs = [
        *captions.VERDICTS.values(),
        *((c, captions.BACKGROUND) for c in (captions.TEXT, captions.QUIET)),
    ]
    assert min(contrast(*pair) for pair in pairs) >= 4.5


@pytest.mark.parametrize("text", ["", "word", "several words of a long reason", "w" * 300])
def test_wrapped_lines_fit_and_lose_no_letter(text: str) -> None:
    lines = wrapped(text, 13, 90)
    assert all(text_width(line, 13) <= 90 for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")


def test_a_result_of_another_threshold_is_painted_by_that_threshold() -> None:
    stricter: Result = replace(made_result(FRAME, DEFECT, pixel_threshold=2.8), verdict="anomalous")
    np.testing.assert_array_equal(draw(stricter, captions=False), FRAME)
