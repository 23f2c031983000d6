"""Make, write and read the self-test of a bundle: a few frames, and the answers that they must give.

The frames are synthetic (a textured surface with a blot), so that a bundle carries nobody's photographs. The
answers are the levels that the reference network gave at export, and its energies and counts where the graph
gives them. The answers come before any normalisation, so they stay right when the bundle is calibrated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from flowedge.bundle import Bundle
from flowedge.errors import BundleError
from flowedge.manifest import Preprocessing, level_outputs
from flowedge.runtime.device.limits import MAX_PIXELS
from flowedge.runtime.device.npz import arrays_from_npz, npz_from_arrays

FRAMES: Final = "selftest/frames.npz"
ANSWERS: Final = "selftest/answers.npz"

_SIZES: Final = ((120, 160), (203, 151), (96, 96))
_SQUARE_SIZES: Final = ((120, 120), (203, 203), (96, 96))
_LONGEST_SIDE: Final = 256  # drawn pixels of a frame of a given size
_MOST_FRAMES: Final = 16  # a bundle has three, which are inferred in one batch
_LARGEST_BYTES: Final = len(_SIZES) * MAX_PIXELS * 3


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SelfTest:
    """The frames and the expected answers of a bundle, for every machine.

    Attributes:
        frames: K frames, each ``(H, W, 3)`` uint8 RGB, of different sizes but for a ``frame_size``.
        answers: The answers by the name of the output, ``level_i`` and what the manifest's ``nfa`` adds, each
            ``(K, 1, h, w)`` float32.
    """

    frames: tuple[NDArray[np.uint8], ...]
    answers: Mapping[str, NDArray[np.float32]]


def synthetic_frames(
    preprocessing: Preprocessing, frame_size: tuple[int, int] | None = None
) -> tuple[NDArray[np.uint8], ...]:
    """Draw the frames of a self-test, equal on every machine. Frames are square where the network needs square frames.

    With a ``frame_size``, all frames have this size. Large frames are drawn in coarse pixels, so that they pack well.
    """
    if frame_size is not None:
        coarse = -(-max(frame_size) // _LONGEST_SIDE)
        drawn = -(-frame_size[0] // coarse), -(-frame_size[1] // coarse)
        return tuple(
            _frame(number, drawn).repeat(coarse, 0).repeat(coarse, 1)[: frame_size[0], : frame_size[1]]
            for number in range(len(_SIZES))
        )
    square = preprocessing.keep_aspect and preprocessing.crop is None
    return tuple(_frame(number, size) for number, size in enumerate(_SQUARE_SIZES if square else _SIZES))


def files_of_selftest(
    frames: Sequence[NDArray[np.uint8]], answers: Mapping[str, NDArray[np.float32]]
) -> dict[str, bytes]:
    """Make the two files of a bundle that hold a self-test."""
    return {
        FRAMES: npz_from_arrays({f"frame_{n}": frame for n, frame in enumerate(frames)}),
        ANSWERS: npz_from_arrays(answers),
    }


def read_selftest(bundle: Bundle) -> SelfTest:
    """Read a bundle's self-test.

    Raises:
        BundleError: There is none, or it does not fit the manifest.
    """
    stored = _arrays(bundle, FRAMES)
    if len(stored) > _MOST_FRAMES:
        raise BundleError(
            f"{bundle.path / FRAMES} holds {len(stored)} frames, more than {_MOST_FRAMES}. Export the bundle again."
        )
    frames = [stored[name] for name in sorted(stored)]
    if not frames or any(f.dtype != np.uint8 or f.ndim != 3 or f.shape[2] != 3 for f in frames):
        raise BundleError(f"{bundle.path / FRAMES} holds no (H, W, 3) uint8 frames. Export the bundle again.")
    return SelfTest(frames=tuple(frames), answers=_answers(bundle, ANSWERS, len(frames)))


def rounded_answers_file(precision: str) -> str:
    """Name the file with the answers of an INT8 or a pruned graph to the frames of the self-test."""
    return f"selftest/answers.{precision}.npz"


def read_rounded_answers(bundle: Bundle, precision: str) -> Mapping[str, NDArray[np.float32]] | None:
    """Read the recorded answers of a precision's graph, evaluated as ONNX defines it, if the bundle has them.

    Returns:
        The answers by the name of the output, each ``(K, 1, h, w)`` float32. There are no such answers for other
        precisions, and for bundles of earlier versions.

    Raises:
        BundleError: The file does not fit the manifest.
    """
    path = rounded_answers_file(precision)
    if path not in {file.path for file in bundle.manifest.files}:
        return None
    return _answers(bundle, path, len(_arrays(bundle, FRAMES)))


def read_pruned_answers(bundle: Bundle, precision: str) -> Mapping[str, NDArray[np.float32]] | None:
    """Read the recorded answers of the pruned graph that a precision's graph rests on.

    Returns:
        The answers as `read_rounded_answers` gives them, or None for a graph with all of its hidden units.

    Raises:
        BundleError: The file does not fit the manifest.
    """
    return read_rounded_answers(bundle, "pruned") if bundle.manifest.graph(precision).pruned else None


def _answers(bundle: Bundle, path: str, frames: int) -> Mapping[str, NDArray[np.float32]]:
    """Read answers to the self-test, and refuse those that the manifest does not describe."""
    answers = _arrays(bundle, path)
    found = {name: (answer.shape, str(answer.dtype)) for name, answer in answers.items()}
    wanted = {
        name: ((frames, 1, level.height, level.width), "float32")
        for name, level in level_outputs(bundle.manifest.levels, bundle.manifest.nfa).items()
    }
    if found != wanted:
        raise BundleError(
            f"{bundle.path / path} holds {found}, the manifest says {wanted}. Export the bundle again."
        )
    return answers


def _frame(seed: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    height, width = size
    coarse = cv2.resize(rng.uniform(0, 1, (7, 9, 3)), (width, height), interpolation=cv2.INTER_CUBIC)
    grain = cv2.GaussianBlur(rng.normal(0, 1, (height, width, 1)), (0, 0), 1.2)
    surface = 120 + 60 * (coarse - 0.5) + 25 * grain.reshape(height, width, 1)
    rows, columns = np.mgrid[0:height, 0:width]
    centre = rng.uniform(0.3, 0.7, 2) * size
    blot = np.exp(-((rows - centre[0]) ** 2 + (columns - centre[1]) ** 2) / (2 * (0.05 * width) ** 2))
    frame: NDArray[np.uint8] = np.clip(surface - 110 * blot[:, :, None], 0, 255).astype(np.uint8)
    return frame


def _arrays(bundle: Bundle, path: str) -> dict[str, NDArray[Any]]:
    try:
        return arrays_from_npz(bundle.read(path), largest=_LARGEST_BYTES)
    except ValueError as error:
        raise BundleError(
            f"{bundle.path / path} cannot be read: {error}. Export the bundle again."
        ) from error
