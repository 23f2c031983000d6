"""Fit the score maxima on good images, and store them in the graphs.

CFLOW and MSFlow turn each level's log-likelihood into a likelihood relative to a maximum, sum the levels, and
subtract from the largest sum (D. Gudovskiy et al., "CFLOW-AD", WACV 2022, section 4, and Y. Zhou et al., "MSFlow",
TNNLS 2024). The official CFLOW takes both maxima over the whole test set. FlowEdge takes them over good images, once,
so that an image's answer depends on nothing but the image.

Plain maxima, which the official code takes too, are reproducible and need no choice. One outlying position of one good
image can therefore set a level's maximum. Such a maximum lowers that level's weight against the other levels by the
same factor at every position. The maximum of the sum only moves all scores, and the thresholds fitted after it, by a
constant. A high quantile would bound this loss of weight, at the price of one more number to choose, and of maps that
no longer agree with the source's.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from flowedge.bundle import Bundle, clone_bundle
from flowedge.errors import CalibrationError
from flowedge.families import TRAITS
from flowedge.manifest import GraphFile, Manifest, ScoreMaxima, Thresholds
from flowedge.onnx_constants import write_constants
from flowedge.runtime.aggregate import largest_sums

Levels: TypeAlias = tuple[NDArray[np.float32], ...]
LargestSum: TypeAlias = Callable[[Levels, tuple[float, ...]], float]


class StoredLevels:
    """The levels of images in a temporary file, 5 kB an image for a CFLOW at 256x256, until it is closed.

    An iteration gives each image's levels in order, as often as wanted, in the memory of one image.

    Attributes:
        level_max: Each level's largest value over all images.
        count: The number of images.
    """

    def __init__(self, levels: Iterable[Levels], names: Sequence[str] | None = None) -> None:
        """Read and store all levels.

        Args:
            levels: Per image, its levels fine to coarse, of any shape, float32 log-likelihood per dimension. The levels
                are read once.
            names: The names of the images for messages. By default a message gives the index.

        Raises:
            CalibrationError: There is no image, or an image's levels are not all finite.
            ValueError: An image's levels have other shapes than those of the first image.
        """
        self.level_max: tuple[float, ...] = ()
        self.count = 0
        self._shapes: list[tuple[int, ...]] = []
        self._file = tempfile.TemporaryFile(prefix="flowedge-levels-")  # noqa: SIM115, closed with this object
        with contextlib.ExitStack() as on_error:
            on_error.callback(self.close)
            for image in levels:
                self._add(image, f"image {self.count}" if names is None else names[self.count])
            if self.count == 0:
                raise CalibrationError("the score maxima need at least one good image, got none.")
            on_error.pop_all()

    def _add(self, image: Levels, name: str) -> None:
        if not self._shapes:
            self._shapes = [level.shape for level in image]
            self.level_max = (-np.inf,) * len(image)
        if [level.shape for level in image] != self._shapes:
            raise ValueError(f"levels {[level.shape for level in image]} after levels {self._shapes}")
        if not all(np.isfinite(level).all() for level in image):
            raise CalibrationError(
                f"the likelihoods of {name} are not all finite. Remove the image, or run flowedge verify to see "
                "whether the precision is the cause."
            )
        self.level_max = tuple(
            max(m, float(level.max())) for m, level in zip(self.level_max, image, strict=True)
        )
        for level in image:
            self._file.write(np.ascontiguousarray(level, np.float32).tobytes())
        self.count += 1

    def __iter__(self) -> Iterator[Levels]:
        self._file.seek(0)
        for _ in range(self.count):
            yield tuple(_read(self._file.read(4 * math.prod(shape)), shape) for shape in self._shapes)

    def close(self) -> None:
        """Remove the file."""
        self._file.close()

    def __enter__(self) -> StoredLevels:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def fit_score_maxima(
    levels: StoredLevels, *, map_sum: LargestSum, mul_sum: LargestSum | None = None
) -> ScoreMaxima:
    """Fit the maxima over good images.

    Args:
        levels: The images' levels, of shapes that ``map_sum`` takes.
        map_sum: A function that takes an image's levels and the levels' maxima. The function returns the largest value
            of sum over l of U_l(exp(level_l - max_l)), as the bundle's family computes its map.
        mul_sum: For MSFlow only, the largest value of the sum of the levels' likelihoods, from the same arguments.
    """
    map_max, mul_max = -np.inf, -np.inf
    for image in levels:
        map_max = max(map_max, map_sum(image, levels.level_max))
        if mul_sum is not None:
            mul_max = max(mul_max, mul_sum(image, levels.level_max))
    return ScoreMaxima(
        level_max=levels.level_max, map_max=map_max, mul_max=None if mul_sum is None else mul_max
    )


def has_score_maxima(manifest: Manifest) -> bool:
    """Return True where the family's score is normalised by maxima that can be fitted."""
    return manifest.graphs[0].scoring.normalisation != "none"


def score_maxima_of_bundle(levels: StoredLevels, manifest: Manifest) -> ScoreMaxima:
    """Fit the score maxima that the bundle's family needs."""

    def largest_map(image: tuple[NDArray[np.float32], ...], level_max: tuple[float, ...]) -> float:
        return largest_sums(image, level_max, manifest.family, manifest.image_size)[0]

    def largest_mul(image: tuple[NDArray[np.float32], ...], level_max: tuple[float, ...]) -> float:
        largest = largest_sums(image, level_max, manifest.family, manifest.image_size)[1]
        assert largest is not None
        return largest

    multiplicative = TRAITS[manifest.family].multiplicative_map
    return fit_score_maxima(levels, map_sum=largest_map, mul_sum=largest_mul if multiplicative else None)


def with_score_maxima(bundle: Bundle, maxima: Mapping[str, ScoreMaxima | None], folder: Path) -> Bundle:
    """Patch the score maxima into a copy of every graph, and return a draft of the bundle with these copies.

    The thresholds and the colour scale of the old scores are dropped. The limit of log NFA stays, because the number of
    false alarms depends on the latents alone.

    Args:
        bundle: The bundle, which is left as it is.
        maxima: The score maxima of each precision.
        folder: The folder in which the draft is written.

    Raises:
        BundleError: A graph was changed since the bundle was opened, or cannot be written.
    """
    graphs: list[GraphFile] = []
    for graph in bundle.manifest.graphs:
        own = maxima[graph.precision]
        assert own is not None
        bundle.check_again(graph.file)
        write_constants(bundle.path / graph.file, folder / graph.file, constants_of(own))
        scoring = msgspec.structs.replace(graph.scoring, normalisation="fixed_reference", score_maxima=own)
        thresholds = Thresholds(nfa=graph.thresholds.nfa)
        graphs.append(msgspec.structs.replace(graph, scoring=scoring, thresholds=thresholds, colours=None))
    manifest = msgspec.structs.replace(bundle.manifest, graphs=tuple(graphs))
    files = {graph.file: folder / graph.file for graph in graphs}
    return clone_bundle(bundle, folder / "draft", manifest=manifest, files=files)


def constants_of(maxima: ScoreMaxima) -> dict[str, NDArray[np.generic]]:
    """Return the constants of a graph that hold the score maxima, by their names in the ONNX file."""
    values = {f"level_max_{n}": value for n, value in enumerate(maxima.level_max)}
    values["map_max"] = maxima.map_max
    if maxima.mul_max is not None:
        values["mul_max"] = maxima.mul_max
    constants: dict[str, NDArray[np.generic]] = {
        f"reference.{name}": np.full((1, 1, 1, 1), value, np.float32) for name, value in values.items()
    }
    return {"reference.fixed": np.array(True), **constants}


def _read(data: bytes, shape: tuple[int, ...]) -> NDArray[np.float32]:
    return np.frombuffer(data, np.float32).reshape(shape)
