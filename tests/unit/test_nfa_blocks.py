from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats  # type: ignore[import-untyped]

from flowedge.runtime import nfa
from flowedge.runtime.nfa.levels import bicubic
from support.direct_nfa import direct_counts
from support.oracles.original_nfa import original_block_log_nfa

GOLDEN = Path(__file__).parents[3] / "shared" / "golden" / "uflow_official" / "golden.npz"


def counts_like(z: NDArray[np.float32]) -> NDArray[np.int64]:
    return nfa.exceedance_counts(z, 3, 0.9)


def log_tail(
    counts: list[list[int]], channels: int, probability: float, *, original: bool = False
) -> NDArray[np.float64]:
    """Return the tail of a 3x3 window, without resampling and without the number of tests."""
    array = np.array(counts)
    log_nfa = original_block_log_nfa if original else nfa.block_log_nfa
    result = log_nfa([array], [channels], [3], probability, (len(counts), len(counts[0])))
    return result - math.log10(array.size)


@pytest.mark.skipif(not GOLDEN.exists(), reason="the golden U-Flow record is not on this machine")
@pytest.mark.parametrize("image", [0, 1])
def test_with_the_originals_quirks_it_equals_the_official_record(image: int) -> None:
    golden = np.load(GOLDEN)
    latents = [golden[f"z_{level}"][image] for level in range(3)]
    sides = nfa.window_sides(5, levels=3)
    counts = [nfa.exceedance_counts(z, side, 0.9) for z, side in zip(latents, sides, strict=True)]
    channels = [z.shape[0] for z in latents]
    ours = original_block_log_nfa(counts, channels, sides, 0.9, (256, 256))
    # The record is float32 and crosses 0: log10 N minus a sum of its size leaves an absolute error.
    np.testing.assert_allclose(-ours, golden["nfa_block"][image], rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(ours < 0, golden["nfa_block"][image] > 0)


@pytest.mark.parametrize(
    ("window", "levels", "sides"), [(5, 3, (5, 3, 3)), (7, 3, (7, 3, 3)), (7, 2, (7, 3)), (1, 1, (3,))]
)
def test_the_windows_are_those_of_the_originals(window: int, levels: int, sides: tuple[int, ...]) -> None:
    assert nfa.window_sides(window, levels) == sides


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9, 0.99])
def test_the_threshold_is_the_chi_square_quantile(probability: float) -> None:
    assert nfa.exceedance_threshold(probability) == pytest.approx(stats.chi2.ppf(probability, 1), rel=1e-10)


@pytest.mark.parametrize("side", [1, 3, 5])
@pytest.mark.parametrize("shape", [(1, 3, 3), (4, 5, 9), (12, 16, 16)])
def test_the_counts_equal_a_loop_over_windows(shape: tuple[int, int, int], side: int) -> None:
    z = np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)
    np.testing.assert_array_equal(
        nfa.exceedance_counts(z, side, 0.5), direct_counts(z, side, stats.chi2.ppf(0.5, 1))
    )


@given(data=st.data(), channels=st.integers(1, 128), probability=st.sampled_from([0.5, 0.9]))
@settings(max_examples=50)
def test_the_tail_equals_scipys(data: st.DataObject, channels: int, probability: float) -> None:
    # Short of a full window, where the upstream tail is 0.
    count = data.draw(st.integers(0, 9 * channels - 1))
    law = stats.binom(9, 1 - probability)
    ours = {
        name: log_tail([[count]], channels, probability, original=name == "upstream")[0, 0]
        for name in ("upstream", "corrected")
    }
    assert ours["upstream"] == pytest.approx(math.log10(law.sf(count // channels)), rel=1e-9, abs=1e-12)
    at_least = math.fsum(law.pmf(k) for k in range(10) if k * channels >= count)
    assert ours["corrected"] == pytest.approx(math.log10(at_least), rel=1e-9, abs=1e-12)


@given(count=st.integers(0, 9 * 16))
def test_the_two_forms_differ_only_at_whole_counts_per_channel(count: int) -> None:
    upstream = log_tail([[count]], 16, 0.9, original=True) if count < 9 * 16 else np.array([[-np.inf]])
    corrected = log_tail([[count]], 16, 0.9)
    assert bool(corrected == upstream) == (count % 16 != 0)
    assert bool(corrected >= upstream)


def test_more_exceedances_never_make_a_pixel_less_suspicious() -> None:
    tails = [float(log_tail([[count]], 4, 0.9)[0, 0]) for count in range(9 * 4 + 1)]
    assert tails == sorted(tails, reverse=True)
    assert tails[0] == 0


def test_a_full_window_is_finite_when_corrected_and_spoils_its_neighbourhood_upstream() -> None:
    counts = [np.zeros((8, 8), np.int64)]
    counts[0][3, 3] = 9 * 5
    corrected = nfa.block_log_nfa(counts, [5], [3], 0.9, (15, 15))
    assert np.all(np.isfinite(corrected))
    assert corrected.min() == pytest.approx(math.log10(64) + 9 * math.log10(0.1))

    upstream = original_block_log_nfa(counts, [5], [3], 0.9, (15, 15))
    spoilt = ~np.isfinite(upstream)
    assert np.any(np.isnan(upstream))
    assert spoilt[6, 6]
    assert not spoilt[0].any()
    assert not spoilt[12:].any()


def test_an_infinite_value_spreads_through_the_resampling_as_in_pytorch() -> None:
    torch = pytest.importorskip("torch")
    level = np.random.default_rng(1).normal(size=(8, 8))
    level[3, 3] = -np.inf
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(level)[None, None], (15, 21), mode="bicubic", align_corners=True
    )[0, 0].numpy()
    with np.errstate(invalid="ignore"):
        ours = bicubic(level, (15, 21))
    np.testing.assert_array_equal(np.isfinite(ours), np.isfinite(theirs))


def test_unsigned_counts_are_not_wrapped() -> None:
    signed = np.arange(16).reshape(4, 4)
    expected = nfa.block_log_nfa([signed], [7], [3], 0.9, (8, 8))
    np.testing.assert_array_equal(
        nfa.block_log_nfa([signed.astype(np.uint8)], [7], [3], 0.9, (8, 8)), expected
    )


def test_the_levels_multiply_and_the_tests_are_their_pixels() -> None:
    fine, coarse = np.full((8, 8), 30), np.full((4, 4), 20)
    ours = nfa.block_log_nfa([fine, coarse], [7, 9], [5, 3], 0.9, (32, 32))
    expected = math.log10(
        80 * stats.binom.sf(math.ceil(30 / 7) - 1, 25, 0.1) * stats.binom.sf(math.ceil(20 / 9) - 1, 9, 0.1)
    )
    np.testing.assert_allclose(ours, expected, rtol=1e-9)


COUNTS = counts_like(np.ones((2, 4, 4), np.float32))


@pytest.mark.parametrize(
    ("counts", "channels", "windows", "probability", "message"),
    [
        ([COUNTS], [2], [3, 3], 0.9, "one window per level, got 2 for 1"),
        ([COUNTS], [2], [3], 1.0, "between 0 and 1, both excluded, got 1.0"),
        ([COUNTS.astype(np.float32)], [2], [3], 0.9, "must be integers up to .*got float32"),
        ([COUNTS + 19], [2], [3], 0.9, "up to 2 channels x 3x3 = 18, got int64 up to 19"),
        ([COUNTS - 1], [2], [3], 0.9, "must not be negative, got -1"),
    ],
)
def test_a_wrong_argument_is_refused_with_its_value(
    counts: Any, channels: Any, windows: Any, probability: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        nfa.block_log_nfa(counts, channels, windows, probability, (8, 8))


@pytest.mark.parametrize(("shape", "side"), [((2, 4, 4), 4), ((2, 4, 4), -3), ((4, 4), 3), ((2, 2, 9), 5)])
def test_a_window_that_cannot_be_counted_is_refused(shape: tuple[int, ...], side: int) -> None:
    with pytest.raises(ValueError, match="side"):
        nfa.exceedance_counts(np.zeros(shape, np.float32), side, 0.9)
