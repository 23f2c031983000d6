"""Every engine of this machine's CPU gives every family's answers, in every precision."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest

from flowedge.errors import EngineUnavailableError
from flowedge.runtime.engine import ENGINES
from flowedge.runtime.unproven import open_unproven
from flowedge.runtime.verify import BATCH_LIMIT, PARITY_LIMITS
from support.family_graphs import FAMILIES, PRECISIONS, FamilyBundle

ON_THE_CPU = [name for name, spec in ENGINES.items() if spec.device == "cpu"]
# A process that may use no instruction later than AVX2, as a CPU without bfloat16 has none.
ON_AN_OLD_CPU = """
import json, sys
import numpy as np
from flowedge.bundle import open_bundle
from flowedge.runtime.unproven import open_unproven
session = open_unproven("openvino", open_bundle(sys.argv[1]), "bf16")
answers = session.infer(np.load(sys.argv[2]))
print(json.dumps({name: answer.tolist() for name, answer in answers.items()}))
"""


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("engine", ON_THE_CPU)
def test_an_engine_gives_what_the_unlowered_network_gives(
    family_bundle: Callable[[str], FamilyBundle], engine: str, family: str, precision: str
) -> None:
    made = family_bundle(family)
    if (engine, precision) == ("onnxruntime-cpu", "bf16"):
        with pytest.raises(EngineUnavailableError, match="Take another precision"):
            open_unproven(engine, made.bundle, precision)
        return
    session = open_unproven(engine, made.bundle, precision)
    together = session.infer(made.images)
    assert together.keys() == made.expected.keys()
    for name, expected in made.expected.items():
        scale = max(np.abs(expected).max(), 1.0)
        assert np.abs(together[name] - expected).max() <= PARITY_LIMITS[precision] * scale, name
        for number in range(len(made.images)):
            alone = session.infer(made.images[number : number + 1])[name][0]
            assert np.abs(together[name][number] - alone).max() <= BATCH_LIMIT * scale, name
    maps = (together["anomaly_map"].ravel(), made.expected["anomaly_map"].ravel())
    assert np.corrcoef(*maps)[0, 1] > 0.99  # eight bits need not be near, but alike
    session.close()


def test_batches_may_change_in_size_and_order(family_bundle: Callable[[str], FamilyBundle]) -> None:
    """OpenVINO 2026.4 answers wrongly where a graph with an open batch runs with fewer images than before."""
    made = family_bundle("csflow")
    for first in (1, 3):
        session = open_unproven("openvino", made.bundle, "int8-gpu")
        for size in (first, 2, 3, 1, 2):
            answer = session.infer(made.images[:size])["level_0"]
            expected = made.expected["level_0"]
            assert np.abs(answer - expected[:size]).max() <= 0.2 * np.abs(expected).max()
        session.close()


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_is_right_on_a_cpu_without_it(
    family_bundle: Callable[[str], FamilyBundle], family: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    made = family_bundle(family)
    images = tmp_path_factory.mktemp("images") / "images.npy"
    np.save(images, made.images)
    done = subprocess.run(
        [sys.executable, "-c", ON_AN_OLD_CPU, str(made.bundle.path), str(images)],
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    for name, expected in made.expected.items():
        scale = max(np.abs(expected).max(), 1.0)
        assert np.abs(np.array(answers[name]) - expected).max() <= PARITY_LIMITS["bf16"] * scale, name
