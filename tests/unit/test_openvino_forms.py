"""A gather of channels becomes slices or a product on OpenVINO, and gives the same bits."""

from __future__ import annotations

import numpy as np
import openvino as ov
import pytest
from openvino import opset13

from flowedge.runtime.engines.openvino_forms import replace_gathers

RUNS = [*range(70, 96), *range(5), *range(30, 40)]
RANDOM = [7, 3, 11, 2, 9, 0, 5, 10]


@pytest.mark.parametrize(
    ("channels", "index", "kinds"),
    [
        (96, RUNS, {"Slice", "Concat"}),
        (96, list(range(8, 24)), {"Slice"}),
        (12, RANDOM, {"Convolution"}),
        (96, RANDOM, {"Gather"}),
    ],
)
def test_a_gather_of_channels_takes_the_quickest_form_and_gives_the_same_bits(
    channels: int, index: list[int], kinds: set[str]
) -> None:
    x = np.random.default_rng(0).standard_normal((1, channels, 3, 4)).astype(np.float32)
    read = opset13.parameter(x.shape, np.float32)
    gathered = opset13.gather(read, opset13.constant(np.array(index)), opset13.constant(np.int64(1)))
    model = ov.Model([gathered], [read])
    replace_gathers(model)
    assert {node.get_type_name() for node in model.get_ordered_ops()} - {
        "Parameter",
        "Constant",
        "Result",
    } == kinds
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    answer = ov.Core().compile_model(model, "CPU", options)(x)[0]
    np.testing.assert_array_equal(answer, x[:, index])
