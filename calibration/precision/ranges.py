"""What values the tensors of a graph take on images: the ground that every scale and every FP32 island stands on.

A tensor's values are counted by the upper 16 bits of their float32 form, which is how bfloat16 would write them: 65,536
bins that are 0.8 % wide at every magnitude. So one pass over the images is enough, no range has to be known
beforehand, and the memory does not depend on how many images there are.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from flowedge.files import utf8_name
from flowedge.runtime.denormals import flushing_denormals
from flowedge.runtime.npz import arrays_from_npz, npz_from_arrays

_BINS: Final = 1 << 16
_SIGN: Final = 1 << 15
_WORTH_CLEARING: Final = 1 << 17  # values
_FLOAT32_COUNTS: Final = 1 << 24  # OpenCV counts in float32, which holds every whole number up to this one
_OUTPUT_BYTES: Final = 1 << 30  # of the observed tensors of one run
_STORED_BYTES: Final = 1 << 30  # of stored ranges, unpacked


@dataclass(slots=True, kw_only=True, eq=False)
class TensorRange:
    """The values that one tensor took.

    Attributes:
        counts: ``(65536,)`` int64, finite values by the upper 16 bits of their float32 form; all zero where only the
            extremes were wanted.
        smallest: The smallest finite value, in the tensor's own units.
        largest: The largest.
        infinite: How many values were NaN or infinite.
    """

    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(_BINS, np.int64), repr=False)
    smallest: float = math.inf
    largest: float = -math.inf
    infinite: int = 0

    @property
    def largest_magnitude(self) -> float:
        """Of the finite values; 0 when there were none."""
        return max(abs(self.smallest), abs(self.largest)) if self.smallest <= self.largest else 0.0

    def add(self, values: NDArray[np.floating], *, counted: bool = True) -> None:
        """Count values of any shape, or take their extremes alone; half-precision ones are widened."""
        flat = np.ascontiguousarray(values, np.float32).ravel()
        if flat.size == 0:
            return
        smallest, largest = float(flat.min()), float(flat.max())
        if not (math.isfinite(smallest) and math.isfinite(largest)):
            finite = flat[np.isfinite(flat)]
            self.infinite += flat.size - finite.size
            if finite.size:
                self.add(finite, counted=counted)
            return
        self.smallest, self.largest = min(self.smallest, smallest), max(self.largest, largest)
        if counted:  # the costly part
            self.counts += _counts((flat.view(np.uint32) >> np.uint32(16)).astype(np.uint16))

    def histogram(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """The values that occurred, each as the middle of its bin, ascending, and how often; both ``(n,)``."""
        filled = np.flatnonzero(self.counts)
        values = _MIDDLES[filled]
        order = np.argsort(values, kind="stable")
        return np.clip(values[order], self.smallest, self.largest), self.counts[filled][order]


def _counts(bins: NDArray[np.uint16]) -> NDArray[np.int64]:
    """How often each of the bins occurs; OpenCV clears its own first, and then takes a quarter of NumPy's time."""
    if not _WORTH_CLEARING <= bins.size <= _FLOAT32_COUNTS:
        return np.bincount(bins, minlength=_BINS)
    return cv2.calcHist([bins[None]], [0], None, [_BINS], [0, _BINS]).ravel().astype(np.int64)


def _middles() -> NDArray[np.float64]:
    bits = (np.arange(_BINS, dtype=np.uint32) << np.uint32(16)) | np.uint32(0x8000)
    with np.errstate(invalid="ignore"):
        values = bits.view(np.float32).astype(np.float64)
    values[[0, _SIGN]] = 0.0  # zeros, and denormals that engines flush
    return values


_MIDDLES: Final = _middles()


class Observer:
    """A graph whose tensors are watched while it runs.

    The tensors are read in as many runs per image as it takes to hold no more than 1 GiB of them at once.

    Attributes:
        ranges: What each tensor held so far.
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
        """Watch some tensors.

        Args:
            graph: An fp32 graph of a bundle.
            tensors: Names of tensors in it.
            counted: Those whose values are counted; of the others only the extremes are taken. None counts all.
            outputs: The graph's outputs that are wanted beside.
            threads: CPU threads; None leaves it to ONNX Runtime.
        """
        self.ranges = {name: TensorRange() for name in tensors}
        self._counted = frozenset(tensors if counted is None else counted)
        groups = _groups(graph, tensors)
        wanted = [tuple(outputs), *(() for _ in groups[1:])]
        self._sessions = [
            (_session(graph, (*group, *more), threads), group, more)
            for group, more in zip(groups, wanted, strict=True)
        ]

    def __call__(self, image: NDArray[Any]) -> tuple[NDArray[np.float32], ...]:
        """Run the graph on an image and count.

        Args:
            image: What the graph's input takes, ``(1, 3, H, W)`` float32 (or a frame, for graphs that take frames).

        Returns:
            The outputs that were asked for.
        """
        outputs: tuple[NDArray[np.float32], ...] = ()
        for session, group, more in self._sessions:
            with flushing_denormals():
                answers: Sequence[Any] = session.run([*group, *more], {session.get_inputs()[0].name: image})
            for name, values in zip(group, answers[: len(group)], strict=True):
                self.ranges[name].add(values, counted=name in self._counted)
            outputs += tuple(answers[len(group) :])
        return outputs


def _groups(graph: Path, tensors: Sequence[str]) -> list[tuple[str, ...]]:
    shapes = tensor_shapes(onnx.shape_inference.infer_shapes(onnx.load(str(graph), load_external_data=False)))
    groups: list[list[str]] = [[]]
    size = 0
    for name in tensors:
        # An open batch counts as one: images are observed one by one.
        own = 4 * math.prod(side or 1 for side in shapes.get(name, ()))
        if groups[-1] and size + own > _OUTPUT_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += own
    return [tuple(group) for group in groups if group]


def _session(graph: Path, outputs: Sequence[str], threads: int | None) -> ort.InferenceSession:
    """The graph with other outputs; weights beside it stay where they are."""
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
    """The shape of every tensor that shape inference knows; an open side is None."""
    graph = model.graph
    return {
        value.name: tuple(
            side.dim_value if side.HasField("dim_value") else None
            for side in value.type.tensor_type.shape.dim
        )
        for value in (*graph.value_info, *graph.input, *graph.output)
        if value.type.tensor_type.HasField("shape")
    }


# The cache


def bytes_from_ranges(ranges: Mapping[str, TensorRange]) -> bytes:
    """The ranges as a compressed ``.npz``; a few kilobytes per tensor."""
    arrays: dict[str, NDArray[np.generic]] = {"names": np.array(list(ranges), dtype=np.str_)}
    for n, one in enumerate(ranges.values()):
        filled = np.flatnonzero(one.counts)
        arrays[f"bins_{n}"] = filled.astype(np.uint16)
        arrays[f"counts_{n}"] = one.counts[filled]
        arrays[f"limits_{n}"] = np.array([one.smallest, one.largest, one.infinite])
    return npz_from_arrays(arrays)


def ranges_from_bytes(data: bytes) -> dict[str, TensorRange]:
    """What `bytes_from_ranges` wrote.

    Raises:
        ValueError: The bytes are not that.
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
    except (
        Exception
    ) as error:  # arrays of a wrong type or shape, or that are missing, raise from NumPy and Python
        raise ValueError(f"not stored ranges: {error}") from error
    if any(one.counts.min() < 0 or np.isnan((one.smallest, one.largest)).any() for one in ranges.values()):
        raise ValueError("not stored ranges: no values can have them")
    return ranges


def ranges_key(
    graph_sha256: str, inputs_sha256: str, tensors: Iterable[str], counted: Iterable[str] = ()
) -> str:
    """What stored ranges belong to: this graph with its weights, what it was given, these tensors in any order."""
    digest = hashlib.sha256()
    for part in (graph_sha256, inputs_sha256, *sorted(tensors), "counted", *sorted(counted)):
        digest.update(part.encode() + b"\n")
    return digest.hexdigest()
