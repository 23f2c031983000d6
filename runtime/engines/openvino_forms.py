"""Bring a graph into forms that OpenVINO computes rightly and quickly, before it is compiled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13

# Up to this number of channels a product with a matrix costs less than the two changes of layout around a gather:
# 0.2 ms instead of 1 ms for 64 channels of 64x64.
_MOST_CHANNELS: Final = 64
# The most slices in place of a gather. The export orders channels so that most gathers have three runs at most.
_MOST_RUNS: Final = 4


def join_signed_quantisation(model: ov.Model) -> None:
    """Replace each signed quantisation and its dequantisation by one FakeQuantize, which gives the same values.

    OpenVINO 2026.4 moves a quantisation that follows a Concat in front of the Concat, and is wrong where the integers
    are signed: the Concat then holds the tensor's values rounded to whole numbers and clipped to -128..127, as if the
    step were 1. A Concat of dequantised tensors is wrong for the same reason. A FakeQuantize, which OpenVINO's own
    tools write, is moved rightly, and its convolutions still run in eight bits.
    """
    for node in model.get_ordered_ops():
        found = _signed_steps(node)
        if found is None:
            continue
        steps, zero, step = found
        ends = [(steps.input_value(place).get_node().data - zero) * step for place in (3, 4)]
        joined = opset13.fake_quantize(
            *(steps.input_value(place) for place in (0, 1, 2)),
            *(opset13.constant(end.astype(np.float32)) for end in ends),
            steps.get_attributes()["levels"],
        )
        for reader in node.output(0).get_target_inputs():
            reader.replace_source_output(joined.output(0))


def _signed_steps(node: ov.Node) -> tuple[ov.Node, float, float] | None:
    """Return the FakeQuantize, the zero and the step of a dequantisation of signed integers.

    Args:
        node: The last node of FakeQuantize, Convert to int8, Convert, Subtract of the zero (there may be none),
            Multiply by the step. Any other node gives None.
    """
    if node.get_type_name() != "Multiply":
        return None
    step, source, zero = scalar_of(node.input_value(1)), node.input_value(0).get_node(), 0.0
    if source.get_type_name() == "Subtract":
        subtracted, source = scalar_of(source.input_value(1)), source.input_value(0).get_node()
        zero = np.nan if subtracted is None else subtracted
    if step is None or np.isnan(zero) or source.get_type_name() != "Convert":
        return None
    integers = source.input_value(0)
    if integers.get_node().get_type_name() != "Convert" or integers.get_element_type() != ov.Type.i8:
        return None
    steps = integers.get_node().input_value(0).get_node()
    ends = steps.get_type_name() == "FakeQuantize" and all(
        steps.input_value(place).get_node().get_type_name() == "Constant" for place in (3, 4)
    )
    return (steps, zero, step) if ends else None


def scalar_of(output: ov.Output) -> float | None:
    """Return the value of a constant with one element, converted or not, and None for any other output."""
    node = output.get_node()
    if node.get_type_name() == "Convert":
        node = node.input_value(0).get_node()
    return float(node.data.item()) if node.get_type_name() == "Constant" and node.data.size == 1 else None


def unround_swish(model: ov.Model) -> None:
    """Take out the quantisation before a swish, and that of its sigmoid, so that OpenVINO fuses it with a convolution.

    ONNX Runtime needs both quantisations to compute ``x * sigmoid(x)`` in eight bits. OpenVINO computes the swish
    in float32 in any case, and a quantisation between a convolution and its swish makes a node of its own.
    """
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Sigmoid":
            continue
        for dequantised in _dequantised_by(node.output(0)):
            for reader in dequantised.get_target_inputs():
                reader.replace_source_output(node.output(0))
        read = node.input_value(0)
        rounded = _before_rounding(read)
        readers = [reader.get_node().get_type_name() for reader in read.get_target_inputs()]
        if rounded is not None and sorted(readers) == ["Multiply", "Sigmoid"]:
            for reader in read.get_target_inputs():
                reader.replace_source_output(rounded)


def _dequantised_by(output: ov.Output) -> list[ov.Output]:
    """Return the dequantised values of an output that one quantisation alone reads."""
    readers = [reader.get_node() for reader in output.get_target_inputs()]
    if len(readers) != 1 or readers[0].get_type_name() != "FakeQuantize":
        return []
    ends, found = [readers[0].output(0)], []
    while ends:
        end = ends.pop()
        if (source := _before_rounding(end)) is not None and source.get_node() == output.get_node():
            found.append(end)
            continue
        following = [reader.get_node() for reader in end.get_target_inputs()]
        ends += [one.output(0) for one in following if one.get_type_name() in _DEQUANTISATION]
    return found


_DEQUANTISATION: Final = (
    "Multiply",
    "Subtract",
    "Convert",
    "Convert",
)  # from its last node; Subtract may be absent


def _before_rounding(output: ov.Output) -> ov.Output | None:
    """Return what a quantised and dequantised output was before, or None for any other output."""
    node, source = output.get_node(), output
    for kind in (*_DEQUANTISATION, "FakeQuantize"):
        if kind == "Subtract" and node.get_type_name() == "Convert":
            continue
        if node.get_type_name() != kind:
            return None
        source = node.input_value(0)
        node = source.get_node()
    return source


def replace_gathers(model: ov.Model) -> None:
    """Replace each gather of channels by slices or by a product, which give exactly the same values.

    The CPU keeps maps with their channels last around a convolution, and gathers from channels first. A few runs of
    channels are sliced and concatenated. Of few channels, others are gathered by a product with zeros and ones.
    """
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Gather":
            continue
        source = node.input_value(0)
        chosen, axis = (node.input_value(place).get_node() for place in (1, 2))
        shape = source.get_partial_shape()
        constants = chosen.get_type_name() == axis.get_type_name() == "Constant"
        if not constants or len(shape) != 4 or source.get_element_type() != ov.Type.f32:
            continue
        channels = shape[1].get_length()
        if axis.data.ravel().tolist() != [1] or chosen.data.ndim != 1:
            continue
        runs = np.split(chosen.data, np.flatnonzero(np.diff(chosen.data) != 1) + 1)
        if len(runs) <= _MOST_RUNS:
            replaced = _sliced(source, runs)
        elif channels <= _MOST_CHANNELS:
            ones = np.eye(channels, dtype=np.float32)[chosen.data][:, :, None, None]
            replaced = opset13.convolution(source, opset13.constant(ones), [1, 1], [0, 0], [0, 0], [1, 1])
        else:
            continue
        for reader in node.output(0).get_target_inputs():
            reader.replace_source_output(replaced.output(0))


def _sliced(source: ov.Output, runs: Sequence[NDArray[np.integer]]) -> ov.Node:
    """Slice runs of consecutive channels, and concatenate the slices where there are several."""
    slices = [
        opset13.slice(source, *(opset13.constant([int(end)]) for end in (run[0], run[-1] + 1, 1, 1)))
        for run in runs
    ]
    return slices[0] if len(slices) == 1 else opset13.concat(slices, 1)
