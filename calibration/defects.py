"""Paint synthetic defects into frames of good parts, each with its mask.

These defects do not resemble the real defects of any line. Synthetic defects bring a detector's maps and scores into
the anomalous range, which good images alone never do, so that two precisions can be compared there. Do not tune on them
anything that real defects should decide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from flowedge.errors import ImageError
from flowedge.runtime.frames.preprocess import check_frame

Frame: TypeAlias = NDArray[np.uint8]
Plane: TypeAlias = NDArray[np.float32]

SMALLEST_SIDE_PX: Final = 16
AREA: Final = (0.0003, 0.2)
"""The smallest and largest area of a mask, as a share of the shorter side's square. No area is below 4 pixels."""
VISIBLE: Final = 8.0
"""The least visible change in grey levels. The largest change of a pixel's three channels, on average over the mask, is
compared with this limit."""
_FAINTEST: Final = np.float32(0.1)  # paint thinner than this is left out, so that the mask has an honest edge


class Defect(NamedTuple):
    """A frame with a defect, ``(H, W, 3)`` uint8 RGB, and its ``(H, W)`` mask, outside of which it is the good one."""

    frame: Frame
    mask: NDArray[np.bool_]


class _Paint(NamedTuple):
    """The paint to lay over a window of the frame.

    Attributes:
        top: The first row of the window.
        left: The first column of the window.
        colour: ``(h, w, 3)`` in grey levels.
        alpha: ``(h, w)`` opacity in 0..1.
    """

    top: int
    left: int
    colour: Plane
    alpha: Plane


def synthetic_defect(frame: Frame, kind: str, rng: np.random.Generator) -> Defect:
    """Make one synthetic defect in a frame of a good part.

    Args:
        frame: ``(H, W, 3)`` uint8 RGB, at least 16x16, of a good part. The frame is not modified.
        kind: A name of ``DEFECTS``.
        rng: The random generator of the defect's place, size, shape and strength. Equal states give equal bytes.

    Returns:
        The defect, with arrays of its own. The size of the defect follows the frame's shorter side. A frame whose
        channels are equal, as a grey camera's are, keeps them equal.

    Raises:
        ImageError: The frame has another type or shape, or is too small.
        ValueError: There is no such kind.
    """
    check_frame(frame)
    if min(frame.shape[:2]) < SMALLEST_SIDE_PX:
        raise ImageError(
            f"a frame of {frame.shape[0]}x{frame.shape[1]} is too small for a synthetic defect: each side needs at "
            f"least {SMALLEST_SIDE_PX} pixels. Give larger photographs."
        )
    if kind not in DEFECTS:
        raise ValueError(f"there is no defect {kind!r}; choose one of {', '.join(DEFECTS)}")
    paint = DEFECTS[kind](frame, rng)
    window = np.s_[
        paint.top : paint.top + paint.alpha.shape[0], paint.left : paint.left + paint.alpha.shape[1]
    ]
    good, alpha = frame[window].astype(np.float32), np.where(paint.alpha < _FAINTEST, 0, paint.alpha)
    is_grey = bool((frame == frame[..., :1]).all())
    painted = _mixed(good, paint.colour.mean(axis=2, keepdims=True) if is_grey else paint.colour, alpha)
    inside = alpha > 0
    if np.abs(painted - good).max(axis=2)[inside].mean() < VISIBLE:  # A blurred flat surface is an example.
        step = np.float32(VISIBLE + 1) / alpha[inside].mean()
        painted = _mixed(good, np.where(good < 128, good + step, good - step), alpha)
    defective, mask = frame.copy(), np.zeros(frame.shape[:2], np.bool_)
    defective[window], mask[window] = painted, inside
    return Defect(defective, mask)


def synthetic_defects(frame: Frame, seed: int, kinds: Iterable[str] | None = None) -> Iterator[Defect]:
    """Make one defect of each kind, each in a frame of its own.

    Args:
        frame: ``(H, W, 3)`` uint8 RGB, at least 16x16, of a good part.
        seed: A number that is not negative. Only the seed and the kind's name decide a defect, whatever other kinds are
            made.
        kinds: Names of ``DEFECTS``. By default all are made.

    Yields:
        The defects in the order of the kinds, each made when it is needed.

    Raises:
        ImageError: The frame has another type or shape, or is too small.
        ValueError: There is no such kind, or the seed is negative.
    """
    for kind in DEFECTS if kinds is None else kinds:
        yield synthetic_defect(frame, kind, np.random.default_rng([seed, *kind.encode()]))


def _cut_paste(frame: Frame, rng: np.random.Generator) -> _Paint:
    """Copy a rectangle of the frame to another place, a little brighter or darker.

    Source of the idea: C.-L. Li et al., "CutPaste: Self-Supervised Learning for Anomaly Detection and Localization",
    CVPR 2021.
    """
    height, width = frame.shape[:2]
    area, aspect = rng.uniform(0.02, 0.1) * min(height, width) ** 2, np.exp(rng.uniform(-1.1, 1.1))
    h, w = max(2, round(np.sqrt(area * aspect))), max(2, round(np.sqrt(area / aspect)))
    (top, from_top), (left, from_left) = (
        rng.integers(height - h + 1, size=2),
        rng.integers(width - w + 1, size=2),
    )
    cut = frame[from_top : from_top + h, from_left : from_left + w].astype(np.float32)
    return _Paint(int(top), int(left), cut * np.float32(rng.uniform(0.8, 1.2)), np.ones((h, w), np.float32))


def _scratch(frame: Frame, rng: np.random.Generator) -> _Paint:
    """Draw a thin bent line, brighter or darker than the surface."""
    height, width = frame.shape[:2]
    side = min(height, width)
    thickness, length = max(1, round(side * rng.uniform(0.003, 0.012))), side * rng.uniform(0.25, 0.5)
    along = np.linspace(-0.5, 0.5, 24)
    bend = rng.uniform(-0.15, 0.15) * np.cos(2 * np.pi * rng.uniform(0.4, 1.0) * along)
    angle = rng.uniform(0, np.pi)
    y = rng.uniform(length / 2, height - length / 2) + length * (along * np.sin(angle) + bend * np.cos(angle))
    x = rng.uniform(length / 2, width - length / 2) + length * (along * np.cos(angle) - bend * np.sin(angle))
    margin = thickness + 1
    top, left = max(0, int(y.min()) - margin), max(0, int(x.min()) - margin)
    bottom, right = min(height, int(y.max()) + margin + 1), min(width, int(x.max()) + margin + 1)
    fraction_bits = 4
    points = np.rint(np.stack([x - left, y - top], axis=1) * 2**fraction_bits).astype(np.int32)
    line = np.zeros((bottom - top, right - left), np.uint8)
    cv2.polylines(line, [points], False, 255, thickness, cv2.LINE_AA, fraction_bits)
    surface = frame[top:bottom, left:right].astype(np.float32)
    change = np.float32(rng.uniform(30, 90) * rng.choice([-1, 1]))
    return _Paint(top, left, surface + change, line.astype(np.float32) / np.float32(255))


def _blob(frame: Frame, rng: np.random.Generator) -> _Paint:
    """Paint a spot of one colour that hides the surface, as dirt does."""
    top, left, alpha = _spot(frame, rng, rng.uniform(0.03, 0.1))
    colour = rng.uniform(0, 255, 3).astype(np.float32)
    return _Paint(top, left, np.broadcast_to(colour, (*alpha.shape, 3)), alpha)


def _blur(frame: Frame, rng: np.random.Generator) -> _Paint:
    """Blur a spot, so that it loses its texture."""
    top, left, alpha = _spot(frame, rng, rng.uniform(0.08, 0.15))
    width = 2 * round(max(1.0, min(frame.shape[:2]) * rng.uniform(0.015, 0.04))) + 1
    blurred = frame[top : top + alpha.shape[0], left : left + alpha.shape[1]].astype(np.float32)
    for _ in range(3):  # three running means are nearly a Gaussian, and as quick on a large frame
        blurred = np.asarray(cv2.blur(blurred, (width, width)), np.float32)
    return _Paint(top, left, blurred, alpha)


def _colour(frame: Frame, rng: np.random.Generator) -> _Paint:
    """Colour a spot so that its texture shows through, as with a stain."""
    top, left, alpha = _spot(frame, rng, rng.uniform(0.06, 0.15))
    surface = frame[top : top + alpha.shape[0], left : left + alpha.shape[1]].astype(np.float32)
    gains = np.exp(rng.uniform(-0.5, 0.5, 3)).astype(np.float32)
    return _Paint(top, left, surface * gains, alpha)


def _texture(frame: Frame, rng: np.random.Generator) -> _Paint:
    """Paint patches of a foreign texture, half transparent. Both the patches and the texture are Perlin noise.

    Source of the idea: V. Zavrtanik et al., "DRAEM - A discriminatively trained reconstruction embedding for surface
    anomaly detection", ICCV 2021. The paper takes its textures from photographs, which would have to be shipped.
    """
    side = min(frame.shape[:2])
    size = max(8, round(side * rng.uniform(0.25, 0.5)))
    top, left = (int(rng.integers(whole - size + 1)) for whole in frame.shape[:2])
    patches = _perlin(size, size / rng.uniform(1.5, 4), rng)
    cut = np.quantile(patches, rng.uniform(0.6, 0.8))
    grain = np.stack([_perlin(size, max(2.0, size / rng.uniform(8, 16)), rng) for _ in range(3)], axis=2)
    surface = frame[top : top + size, left : left + size].mean(axis=(0, 1), dtype=np.float32)
    colour = surface + rng.uniform(-40, 40, 3).astype(np.float32) + np.float32(rng.uniform(80, 160)) * grain
    return _Paint(top, left, colour, (patches > cut) * np.float32(rng.uniform(0.4, 1.0)))


DEFECTS: Final[Mapping[str, Callable[[Frame, np.random.Generator], _Paint]]] = MappingProxyType(
    {
        "cut-paste": _cut_paste,
        "scratch": _scratch,
        "blob": _blob,
        "blur": _blur,
        "colour": _colour,
        "texture": _texture,
    }
)


def _mixed(good: Plane, colour: Plane, alpha: Plane) -> Plane:
    """Lay the paint over the good window. The result is ``(h, w, 3)`` whole grey levels in 0..255."""
    mixed: Plane = np.clip(np.rint(good + alpha[..., None] * (colour - good)), 0, 255)
    return mixed


def _spot(frame: Frame, rng: np.random.Generator, share: float) -> tuple[int, int, Plane]:
    """Return a ragged disc somewhere in the frame, as its window's top and left and its ``(n, n)`` alpha.

    Args:
        frame: The frame, whose size counts.
        rng: The generator of place and shape.
        share: The mean radius, as a share of the frame's shorter side.
    """
    radius = max(1.5, share * min(frame.shape[:2]))
    reach = int(np.ceil(1.6 * radius))
    size = 2 * reach + 1
    coarse = rng.standard_normal((7, 7)).astype(np.float32)
    noise = np.asarray(cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC), np.float32)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(np.float32)
    edge = np.float32(radius) * (1 + np.float32(0.35) * noise / np.abs(noise).max())
    alpha: Plane = np.clip((edge - np.hypot(y, x)) / np.float32(0.4 * radius) + np.float32(0.5), 0, 1)
    top, left = (int(rng.integers(whole - size + 1)) for whole in frame.shape[:2])
    return top, left, alpha


def _perlin(size: int, cell: float, rng: np.random.Generator) -> Plane:
    """Return gradient noise, ``(size, size)``, about -0.7 to 0.7 (K. Perlin, "Improving Noise", SIGGRAPH 2002).

    Args:
        size: The side in pixels.
        cell: The distance of the lattice's points in pixels.
        rng: The generator of the gradients.
    """
    place = np.arange(size) / cell
    corner = place.astype(np.intp)
    offset = place - corner
    angle = rng.uniform(0, 2 * np.pi, (corner[-1] + 2, corner[-1] + 2))
    slope = np.stack([np.sin(angle), np.cos(angle)])
    fade = offset**3 * (offset * (offset * 6 - 15) + 10)
    noise = np.zeros((size, size))
    for down in (0, 1):
        for right in (0, 1):
            dy, dx = slope[:, corner[:, None] + down, corner[None, :] + right]
            weight = np.outer(fade if down else 1 - fade, fade if right else 1 - fade)
            noise += weight * (dy * (offset - down)[:, None] + dx * (offset - right))
    return noise.astype(np.float32)
