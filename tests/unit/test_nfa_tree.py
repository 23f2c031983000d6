from __future__ import annotations

import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy import ndimage  # type: ignore[import-untyped]

from bench.bench_nfa import adversarial, plain_python
from flowedge.errors import FlowEdgeError
from flowedge.runtime import nfa
from flowedge.runtime.nfa import tree
from flowedge.runtime.nfa.levels import bicubic, bilinear
from support.direct_nfa import direct_log_tail, direct_tree_log_nfa
from support.oracles.original_nfa import original_level_log_tail, original_tree_log_nfa

GOLDEN = Path(__file__).parents[3] / "shared" / "golden" / "uflow_official" / "golden.npz"
LevelTail = Callable[[NDArray[np.float32], int], NDArray[np.float64]]
TreeTest = Callable[
    [Sequence[NDArray[np.float32]], Sequence[int], tuple[int, int]], NDArray[np.float64]
]  # the signature of tree_log_nfa
LEVEL_TAILS = ((tree.level_log_tail, False), (original_level_log_tail, True))

SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, max_side=7)
# A few grey levels make plateaus and ties, and free ones make deep trees. Both straddle the expectation of 1.
GREY = hnp.arrays(np.float32, SHAPES, elements=st.sampled_from([0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 4.0]))
FREE = hnp.arrays(np.float32, SHAPES, elements=st.floats(0.125, 8, width=16))
MAPS = st.one_of(GREY, FREE)


@pytest.fixture(scope="module", autouse=True)
def _without_numba() -> Iterator[None]:
    """Run plain Python, whether or not Numba is installed. The tests of Numba compile for themselves."""
    with plain_python():
        yield


def noise(seed: int, side: int, channels: int) -> NDArray[np.float32]:
    """Make ``(side, side)`` energies of chi-square noise."""
    return np.random.default_rng(seed).chisquare(channels, (side, side)).astype(np.float32)


@pytest.mark.parametrize(("level_log_tail", "upstream"), LEVEL_TAILS)
@given(value=MAPS, channels=st.sampled_from([1, 4, 84]))
@settings(max_examples=150)
def test_a_level_equals_the_direct_implementation(
    level_log_tail: LevelTail, upstream: bool, value: NDArray[np.float32], channels: int
) -> None:
    energy = value * np.float32(channels)
    ours = level_log_tail(energy, channels)
    np.testing.assert_allclose(
        ours, direct_log_tail(energy, channels, upstream=upstream), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize(("log_nfa", "upstream"), [(nfa.tree_log_nfa, False), (original_tree_log_nfa, True)])
@pytest.mark.parametrize("seed", range(3))
def test_noise_maps_of_useful_size_equal_the_direct_implementation(
    seed: int, log_nfa: TreeTest, upstream: bool
) -> None:
    energies, channels = [noise(seed, 20, 12), noise(seed + 10, 10, 24)], (12, 24)
    energies[0][4:9, 5:8] *= 3
    ours = log_nfa(energies, channels, (40, 40))
    direct = direct_tree_log_nfa(energies, channels, (40, 40), upstream=upstream)
    np.testing.assert_allclose(ours, direct, rtol=1e-6, atol=1e-6)
    assert ours.shape == (40, 40)


@pytest.mark.skipif(not GOLDEN.exists(), reason="the golden U-Flow record is not on this machine")
@pytest.mark.parametrize("image", [0, 1])
def test_with_the_originals_quirks_it_equals_the_official_record(image: int) -> None:
    golden = np.load(GOLDEN)
    latents = [golden[f"z_{level}"][image] for level in range(3)]
    energies = [np.square(z).sum(axis=0) for z in latents]
    ours = original_tree_log_nfa(energies, [z.shape[0] for z in latents], (256, 256))
    np.testing.assert_allclose(-ours, golden["nfa_tree"][image], rtol=1e-5)


@pytest.mark.parametrize("level_log_tail", [tree.level_log_tail, original_level_log_tail])
def test_numba_gives_the_same_bits_as_plain_python(
    level_log_tail: LevelTail, monkeypatch: pytest.MonkeyPatch
) -> None:
    numba = pytest.importorskip("numba")
    maps = [*adversarial(24).values(), noise(1, 24, 84)]
    plain = [level_log_tail(energy, 84) for energy in maps]
    compiled = numba.njit(tree._SIGNATURE)(tree._select)
    monkeypatch.setattr(tree, "_compiled_select", lambda: compiled)
    for energy, expected in zip(maps, plain, strict=True):
        np.testing.assert_array_equal(level_log_tail(energy, 84), expected)


def test_without_numba_warming_up_says_so_and_nothing_breaks() -> None:
    code = (
        "import sys; sys.modules['numba'] = None\n"
        "import numpy as np\n"
        "from flowedge.runtime import nfa\n"
        "assert nfa.warm_up() is False\n"
        "assert nfa.tree_log_nfa([np.full((2, 2), 9, np.float32)], [1], (4, 4)).shape == (4, 4)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_the_package_loads_no_optional_library() -> None:
    heavy = ("numba", "scipy", "skimage", "torch", "onnx")
    code = f"import flowedge.runtime.nfa, sys; print(*(m for m in {heavy} if m in sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == []


@pytest.mark.parametrize(
    ("sides", "expected"),
    [((28, 14), 476.9237), ((64, 32, 16), 2493.272), ((112, 56, 28), 7636.4216)],
)
def test_the_number_of_tests_is_the_published_constant(sides: tuple[int, ...], expected: float) -> None:
    assert nfa.number_of_tests([(side, side) for side in sides]) == pytest.approx(expected, rel=1e-7)


@given(sizes=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=3))
@settings(max_examples=30)
def test_the_number_of_tests_equals_the_sum_in_exact_decimals(sizes: list[tuple[int, int]]) -> None:
    total = sum(
        h * w * Decimal("0.316915") * Decimal("4.062570") ** r / r
        for h, w in sizes
        for r in range(1, h * w + 1)
    )
    assert nfa.number_of_tests(sizes) == pytest.approx(float(Decimal(total).log10()), rel=1e-12, abs=1e-12)


@given(value=MAPS, turns=st.integers(0, 3), flip=st.booleans())
@settings(max_examples=60)
def test_turning_or_flipping_the_map_turns_or_flips_the_answer(
    value: NDArray[np.float32], turns: int, flip: bool
) -> None:
    def move(array: NDArray[Any]) -> NDArray[Any]:
        turned = np.rot90(array, turns)
        return np.fliplr(turned) if flip else turned

    expected = move(tree.level_log_tail(value * 8, 8))
    np.testing.assert_allclose(tree.level_log_tail(move(value) * 8, 8), expected, rtol=1e-12)


@given(value=MAPS)
@settings(max_examples=60)
def test_a_corrected_region_never_holds_a_pixel_at_or_below_the_expectation(
    value: NDArray[np.float32],
) -> None:
    tail = tree.level_log_tail(value * 4, 4)
    assert np.all(tail <= 0)
    assert np.all(value[tail < 0] > 1)


def test_one_peak_has_the_tail_of_its_best_level_set() -> None:
    energy = np.full((5, 5), 0.5, np.float32)
    energy[1:4, 1:4] = 3
    energy[2, 2] = 3.5
    chernoff = 10 / 2 * (3 - 1 - math.log(3)) / math.log(10)
    expected = np.where(energy >= 3, -9 * chernoff, 0)
    np.testing.assert_allclose(tree.level_log_tail(energy * 10, 10), expected, rtol=1e-6)


def test_a_map_of_too_little_energy_is_all_anomalous_upstream_and_normal_when_corrected() -> None:
    energy = np.full((16, 16), 0.05 * 84, np.float32)
    energy[8, 8] = 0.06 * 84
    assert np.all(original_tree_log_nfa([energy], [84], (32, 32)) < 0)
    assert np.all(nfa.tree_log_nfa([energy], [84], (32, 32)) > 0)


@pytest.mark.parametrize(
    ("level_log_tail", "kept"), [(tree.level_log_tail, [1, 5, 9]), (original_level_log_tail, [9])]
)
def test_of_exactly_equal_regions_upstream_keeps_only_the_last(
    level_log_tail: LevelTail, kept: list[int]
) -> None:
    energy = np.ones((3, 11), np.float32)
    energy[1, [1, 5, 9]] = 6
    tail = level_log_tail(energy * 4, 4)
    assert np.flatnonzero(tail[1]).tolist() == kept


@pytest.mark.parametrize(
    ("row", "log_tail", "expected"),
    [
        ([3, 1, 3], [-3, -1, -3], ["all", "all", "all"]),
        ([3, 1, 3], [-3, -0.9, -3], ["left", None, "right"]),
        ([3, 2, 1], [-3, -1.5, -1], ["left", None, None]),
    ],
)
def test_ties_go_to_the_parent_in_a_merge_and_to_the_leaf_in_a_chain(
    row: list[float], log_tail: list[float], expected: list[str | None]
) -> None:
    value = np.pad(np.array([row], np.float32), 1)
    inside = np.flatnonzero(value)
    order = inside[np.argsort(-value.ravel()[inside], kind="stable")]
    region, _ = tree._selected(order, value.ravel(), np.pad([log_tail], 1).ravel(), value.shape[1])
    names = {-1: None, inside[1]: "all", inside[0]: "left", inside[-1]: "right"}
    assert [names[int(region[p])] for p in inside] == expected


def test_zero_energy_is_normal_when_corrected() -> None:
    log_nfa = nfa.tree_log_nfa([np.zeros((4, 4), np.float32)], [3], (8, 8))
    assert np.all(log_nfa == nfa.number_of_tests([(4, 4)]))


@pytest.mark.parametrize("name", adversarial(8))
@pytest.mark.parametrize("log_nfa", [nfa.tree_log_nfa, original_tree_log_nfa])
def test_an_adversarial_map_of_128x128_is_answered_within_a_second(name: str, log_nfa: TreeTest) -> None:
    # Plain Python takes some 70 ms. Quadratic code would take minutes, and recursion would overflow the stack.
    energy = adversarial(128)[name]
    start = time.perf_counter()
    log_nfa([energy], [84], (128, 128))
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_refused_and_counted(bad: float) -> None:
    broken = noise(0, 8, 4)
    broken[2, 3] = bad
    with pytest.raises(nfa.NotInspectedError, match="level 1 holds 1 of 64 values"):
        nfa.tree_log_nfa([noise(0, 16, 4), broken], [4, 4], (16, 16))
    assert issubclass(nfa.NotInspectedError, FlowEdgeError)


@pytest.mark.parametrize(
    ("energies", "channels", "size", "message"),
    [
        ([], [], (4, 4), "one channel count per level"),
        ([np.ones((2, 2))], [1, 2], (4, 4), "got 2 for 1 levels"),
        ([np.ones((1, 2, 2))], [1], (4, 4), r"must be \(h, w\).*\(1, 2, 2\)"),
        ([np.ones((0, 2))], [1], (4, 4), "not empty"),
        ([np.ones((2, 2))], [0], (4, 4), "at least one channel, got 0"),
        ([np.full((2, 2), -1.0)], [1], (4, 4), "must not be negative, got -1"),
        ([np.ones((2, 2))], [1], (0, 4), "at least 1x1"),
    ],
)
def test_a_wrong_argument_is_refused_with_its_value(
    energies: Any, channels: Any, size: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        nfa.tree_log_nfa(energies, channels, size)


@pytest.mark.parametrize("source", [(1, 1), (3, 5), (16, 16)])
@pytest.mark.parametrize("target", [(1, 1), (8, 8), (16, 16), (33, 47)])
def test_resampling_equals_pytorch(source: tuple[int, int], target: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch")
    level = np.random.default_rng(4).normal(size=source)
    batch = torch.from_numpy(level)[None, None]
    interpolate = torch.nn.functional.interpolate
    np.testing.assert_allclose(
        bilinear(level, target), interpolate(batch, target, mode="bilinear")[0, 0], atol=1e-6
    )
    np.testing.assert_allclose(
        bicubic(level, target),
        interpolate(batch, target, mode="bicubic", align_corners=True)[0, 0],
        atol=1e-12,
    )


def test_the_regions_are_those_of_scipy_surest_first() -> None:
    log_nfa = ndimage.gaussian_filter(np.random.default_rng(2).normal(size=(60, 80)), 3)
    labels, count = ndimage.label(log_nfa < 0)
    boxes = ndimage.find_objects(labels)
    expected = sorted(
        (
            ndimage.minimum(log_nfa, labels, label),
            int(np.sum(labels == label)),
            boxes[label - 1][0].start,
            boxes[label - 1][1].start,
            boxes[label - 1][0].stop - boxes[label - 1][0].start,
            boxes[label - 1][1].stop - boxes[label - 1][1].start,
            *ndimage.center_of_mass(labels == label),
        )
        for label in range(1, count + 1)
    )
    assert count > 3
    ours = [
        (r.log_nfa or 0.0, r.area_px, r.top, r.left, r.height_px, r.width_px, *r.centroid)
        for r in nfa.detected_regions(log_nfa)
    ]
    np.testing.assert_allclose(ours, expected, rtol=1e-9)


def test_a_map_with_nothing_detected_has_no_regions() -> None:
    assert nfa.detected_regions(np.full((4, 4), 3.0)) == ()
