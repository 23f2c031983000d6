"""Observe the values that the tensors of a graph take on images.

The scales of INT8 and the nodes that float16 leaves in float32 are chosen from these values. A value is counted by the
upper 16 bits of its float32 form, which are its bfloat16 form. There are 65,536 bins, each 0.8 % wide at every
magnitude. So one pass over the images is enough, no range has to be known beforehand, and the memory does not depend
on the number of images.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, Final

import cv2
import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from flowedge.files import utf8_name
from flowedge.manifest import Preprocessing
from flowedge.runtime.device.denormals import flushing_denormals
from flowedge.runtime.device.npz import arrays_from_npz, npz_from_arrays

_BINS: Final = 1 << 16
_SIGN: Final = 1 << 15
_WORTH_CLEARING: Final = 1 << 17  # The number of values from which on OpenCV is faster than NumPy.
_FLOAT32_COUNTS: Final = 1 << 24  # OpenCV counts in float32, which holds every whole number up to this one.
_OUTPUT_BYTES: Final = 1 << 30  # The largest size of the observed tensors of one run.
_STORED_BYTES: Final = 1 << 30  # The largest size of stored ranges when they are unpacked.


@dataclass(slots=True, kw_only=True, eq=False)
class TensorRange:
    """A histogram and the extremes of the values that one tensor took on images.

    Attributes:
        counts: The number of finite values by the upper 16 bits of their float32 form, ``(65536,)`` int64. All are zero
            where only the extremes were taken.
        smallest: The smallest finite value, in the tensor's own units.
        largest: The largest finite value, in the tensor's own units.
        infinite: The number of values that were NaN or infinite.
    """

    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(_BINS, np.int64), repr=False)
    smallest: float = math.inf
    largest: float = -math.inf
    infinite: int = 0

    @property
    def largest_magnitude(self) -> float:
        """The largest magnitude of the finite values, or 0 where there were none."""
        return max(abs(self.smallest), abs(self.largest)) if self.smallest <= self.largest else 0.0

    def add(self, values: NDArray[np.floating], *, counted: bool = True) -> None:
        """Count values, or take their extremes alone.

        Args:
            values: The values, in any shape. Half-precision values are widened.
            counted: False takes the extremes alone.
        """
        flat = np.ascontiguousarray(values, np.float32).ravel()
        if flat.size == 0:
            return
        smallest, largest = float(flat.min()), float(flat.max())
        # Extremes that are finite show that all values are, so the usual case needs no look at each value.
        if not (math.isfinite(smallest) and math.isfinite(largest)):
            finite = flat[np.isfinite(flat)]
            self.infinite += flat.size - finite.size
            if finite.size:
                self.add(finite, counted=counted)
            return
        self.smallest, self.largest = min(self.smallest, smallest), max(self.largest, largest)
        if counted:  # Counting takes most of the time.
            self.counts += _counts((flat.view(np.uint32) >> np.uint32(16)).astype(np.uint16))

    def histogram(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return the values that occurred, in ascending order, and the count of each, both ``(n,)``.

        A value is the middle of its bin.
        """
        filled = np.flatnonzero(self.counts)
        values = _MIDDLES[filled]
        order = np.argsort(values, kind="stable")
        return np.clip(values[order], self.smallest, self.largest), self.counts[filled][order]


def _counts(bins: NDArray[np.uint16]) -> NDArray[np.int64]:
    """Count how often each of the 65,536 bins of values occurs, ``(65536,)`` int64.

    OpenCV first clears all of its bins and then takes a quarter of NumPy's time, so it is used for many values.
    """
    if not _WORTH_CLEARING <= bins.size <= _FLOAT32_COUNTS:
        return np.bincount(bins, minlength=_BINS)
    return cv2.calcHist([bins[None]], [0], None, [_BINS], [0, _BINS]).ravel().astype(np.int64)


def _middles() -> NDArray[np.float64]:
    bits = (np.arange(_BINS, dtype=np.uint32) << np.uint32(16)) | np.uint32(0x8000)
    with np.errstate(invalid="ignore"):
        values = bits.view(np.float32).astype(np.float64)
    values[[0, _SIGN]] = 0.0  # These bins hold zeros, and denormals that engines flush to zero.
    return values


_MIDDLES: Final = _middles()


def image_range_of(preprocessing: Preprocessing) -> tuple[float, float]:
    """Return the smallest and the largest value that a black and a white pixel have after the preprocessing.

    A bicubic resize may go beyond at sharp edges.
    """
    ends = [
        (end - mean) / std
        for mean, std in zip(preprocessing.mean, preprocessing.std, strict=True)
        for end in (0, 1)
    ]
    return min(ends), max(ends)


class Observer:
    """Run a graph and count the values of some of its tensors. Threads may share it.

    The order of the images does not change the counts. An image takes several runs where the tensors of one run would
    need more than 1 GiB of memory.

    Attributes:
        ranges: The values that each tensor took so far, by the tensor's name.
        run_bytes: The size of the observed tensors of the largest run.
    """

    def __init__(
        self,
        graph: Path,
        tensors: Sequence[str],
        *,
        counted: Collection[str] | None = None,
        outputs: Sequence[str] = (),
        threads: int | None = None,
    ) -> None:
        """Open the graph with the observed tensors as outputs.

        Args:
            graph: The file of a bundle's fp32 graph.
            tensors: The names of the tensors to observe.
            counted: The tensors whose values are counted. The others give their extremes only. The default counts all.
            outputs: The graph's own outputs to return for each image.
            threads: The number of CPU threads. ONNX Runtime chooses it by default.
        """
        self.ranges = {name: TensorRange() for name in tensors}
        self._locks = {name: Lock() for name in tensors}
        self._counted = frozenset(tensors if counted is None else counted)
        sized = groups_of_tensors(graph, tensors)
        self.run_bytes = max((size for _, size in sized), default=0)
        groups = [group for group, _ in sized]
        wanted = [tuple(outputs), *(() for _ in groups[1:])]
        self._sessions = [
            (session_with_outputs(graph, (*group, *more), threads), group, more)
            for group, more in zip(groups, wanted, strict=True)
        ]

    def __call__(self, image: NDArray[Any]) -> tuple[NDArray[np.float32], ...]:
        """Run the graph on an image and add the values of the observed tensors.

        Args:
            image: The graph's input ``(1, 3, H, W)`` float32, or a frame for a graph that takes frames.

        Returns:
            The graph's own outputs, in the order of ``outputs``.
        """
        outputs: tuple[NDArray[np.float32], ...] = ()
        for session, group, more in self._sessions:
            with flushing_denormals():
                answers: Sequence[Any] = session.run([*group, *more], {session.get_inputs()[0].name: image})
            for name, values in zip(group, answers[: len(group)], strict=True):
                with self._locks[name]:
                    self.ranges[name].add(values, counted=name in self._counted)
            outputs += tuple(answers[len(group) :])
        return outputs


def groups_of_tensors(graph: Path, tensors: Sequence[str]) -> list[tuple[tuple[str, ...], int]]:
    """Divide tensors into groups that one run gives in at most 1 GiB, and return each with its size in bytes."""
    shapes = tensor_shapes(onnx.shape_inference.infer_shapes(onnx.load(str(graph), load_external_data=False)))
    groups: list[tuple[list[str], int]] = [([], 0)]
    for name in tensors:
        # An open batch size counts as one, because images are observed one by one.
        own = 4 * math.prod(side or 1 for side in shapes.get(name, ()))
        names, size = groups[-1]
        if names and size + own > _OUTPUT_BYTES:
            groups.append(([name], own))
        else:
            groups[-1] = ([*names, name], size + own)
    return [(tuple(names), size) for names, size in groups if names]


def session_with_outputs(graph: Path, outputs: Sequence[str], threads: int | None) -> ort.InferenceSession:
    """Open a graph with some tensors as further outputs. Weights beside the graph's file are read from there."""
    model = onnx.load(str(graph), load_external_data=False)
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    if threads is not None:
        options.intra_op_num_threads = threads
    with flushing_denormals(), utf8_name(graph.resolve()) as name:
        folder = os.path.dirname(name)
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def tensor_shapes(model: onnx.ModelProto) -> dict[str, tuple[int | None, ...]]:
    """Return the shape of every tensor that shape inference knows. An open side is None."""
    graph = model.graph
    return {
        value.name: tuple(
            side.dim_value if side.HasField("dim_value") else None
            for side in value.type.tensor_type.shape.dim
        )
        for value in (*graph.value_info, *graph.input, *graph.output)
        if value.type.tensor_type.HasField("shape")
    }


# Ranges in the device's cache.


def bytes_from_ranges(ranges: Mapping[str, TensorRange]) -> bytes:
    """Return the ranges as a compressed ``.npz`` of a few kilobytes per tensor."""
    arrays: dict[str, NDArray[np.generic]] = {"names": np.array(list(ranges), dtype=np.str_)}
    # Most bins are empty, so only the others are stored.
    for n, one in enumerate(ranges.values()):
        filled = np.flatnonzero(one.counts)
        arrays[f"bins_{n}"] = filled.astype(np.uint16)
        arrays[f"counts_{n}"] = one.counts[filled]
        arrays[f"limits_{n}"] = np.array([one.smallest, one.largest, one.infinite])
    return npz_from_arrays(arrays)


def ranges_from_bytes(data: bytes) -> dict[str, TensorRange]:
    """Read the ranges that `bytes_from_ranges` wrote.

    Raises:
        ValueError: The bytes are not stored ranges.
    """
    try:
        arrays = arrays_from_npz(data, largest=_STORED_BYTES)
        ranges: dict[str, TensorRange] = {}
        for n, name in enumerate(arrays["names"]):
            counts = np.zeros(_BINS, np.int64)
            counts[arrays[f"bins_{n}"]] = arrays[f"counts_{n}"]
            smallest, largest, infinite = (float(v) for v in arrays[f"limits_{n}"])
            ranges[str(name)] = TensorRange(
                counts=counts, smallest=smallest, largest=largest, infinite=int(infinite)
            )
    # Missing arrays, and arrays of a wrong type or shape, raise various errors of NumPy and Python.
    except Exception as error:
        raise ValueError(f"not stored ranges: {error}") from error
    if any(one.counts.min() < 0 or np.isnan((one.smallest, one.largest)).any() for one in ranges.values()):
        raise ValueError("not stored ranges: no values can have them")
    return ranges


def ranges_key(
    graph_sha256: str, inputs_sha256: str, tensors: Iterable[str], counted: Iterable[str] = ()
) -> str:
    """Return the key of stored ranges in the cache.

    Args:
        graph_sha256: The hash of the graph with its weights.
        inputs_sha256: The hash of the images and their preprocessing.
        tensors: The observed tensors, in any order.
        counted: The tensors whose values were counted, in any order.
    """
    digest = hashlib.sha256()
    for part in (graph_sha256, inputs_sha256, *sorted(tensors), "counted", *sorted(counted)):
        digest.update(part.encode() + b"\n")
    return digest.hexdigest()
