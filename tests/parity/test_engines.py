"""Every engine of this machine's CPU gives every family's answers, in every precision."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import openvino
import pytest
from numpy.typing import NDArray

from flowedge.calibration.precision.rounded import rounded_answers
from flowedge.errors import EngineUnavailableError
from flowedge.runtime.opening.engine import ENGINES
from flowedge.runtime.opening.unproven import open_unproven
from flowedge.runtime.verify import BATCH_LIMIT, Check, checks_of_rounding
from support.family_graphs import FAMILIES, PRECISIONS, FamilyBundle

ON_THE_CPU = [name for name, spec in ENGINES.items() if spec.device == "cpu"]
# A process that may use no instruction later than AVX2, as a CPU without bfloat16 has none.
ON_AN_OLD_CPU = """
import json, sys
import numpy as np
from flowedge.bundle import open_bundle
from flowedge.runtime.opening.unproven import open_unproven
session = open_unproven("openvino", open_bundle(sys.argv[1]), "bf16")
answers = session.infer(np.load(sys.argv[2]))
print(json.dumps({name: answer.tolist() for name, answer in answers.items()}))
"""
# Largest difference relative to the largest magnitude, two to five times what right engines differ by.
LIMITS = {"fp32": 1e-5, "fp16": 2e-3, "bf16": 2e-2, "int8-gpu": 4e-2, "int8-cpu": 4e-2}
# A process that computes the INT8 graphs of several bundles with the instructions that its environment leaves.
INT8_ELSEWHERE = """
import pathlib, sys
import numpy as np
from flowedge.bundle import open_bundle
from flowedge.runtime.opening.unproven import open_unproven
images, *bundles = map(pathlib.Path, sys.argv[1:])
for path in bundles:
    for precision in ("int8-gpu", "int8-cpu"):
        session = open_unproven("openvino", open_bundle(path), precision, threads=1)
        answers = session.infer(np.load(images / f"{path.stem}.npy"))
        np.savez(images / f"{path.stem}.{precision}.npz", **answers)
"""


def rounded_levels(made: FamilyBundle, precision: str) -> dict[str, NDArray[np.float32]]:
    levels = [name for name in made.expected if name.startswith("level")]
    return rounded_answers(made.bundle.graph_path(precision), made.images, levels)


def wrong_levels(made: FamilyBundle, precision: str, got: Mapping[str, NDArray[np.float32]]) -> list[Check]:
    """Return the levels that differ more from the INT8 graph's own answers than rounding explains."""
    rounded = rounded_levels(made, precision)
    count = len(got["level_0"])
    checks = checks_of_rounding(
        made.bundle.manifest,
        precision,
        got,
        {name: answer[:count] for name, answer in rounded.items()},
        {name: made.expected[name][:count] for name in rounded},
    )
    return [check for check in checks if not check.passed]


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
        assert np.abs(together[name] - expected).max() <= LIMITS[precision] * scale, name
        for number in range(len(made.images)):
            alone = session.infer(made.images[number : number + 1])[name][0]
            assert np.abs(together[name][number] - alone).max() <= BATCH_LIMIT * scale, name
    if precision.startswith("int8"):
        assert wrong_levels(made, precision, together) == []
    maps = (together["anomaly_map"].ravel(), made.expected["anomaly_map"].ravel())
    assert np.corrcoef(*maps)[0, 1] > 0.999  # the least alike, CS-Flow's in INT8, have 0.9997
    session.close()


def test_the_networks_are_no_worse_conditioned_than_trained_ones(
    family_bundle: Callable[[str], FamilyBundle],
) -> None:
    """A limit tests a kernel only where the network does not amplify one rounding into the whole answer."""
    for family in FAMILIES:
        made = family_bundle(family)
        answers = open_unproven("onnxruntime-cpu", made.bundle, "fp16").infer(made.images)
        for name, expected in made.expected.items():
            scale = max(np.abs(expected).max(), 1.0)
            assert np.abs(answers[name] - expected).max() <= 1e-3 * scale, (family, name)


def test_batches_may_change_in_size_and_order(family_bundle: Callable[[str], FamilyBundle]) -> None:
    """OpenVINO 2026.4 answers wrongly where a graph with an open batch runs with fewer images than before."""
    made = family_bundle("csflow")
    for first in (1, 3):
        session = open_unproven("openvino", made.bundle, "int8-gpu")
        for size in (first, 2, 3, 1, 2):
            assert wrong_levels(made, "int8-gpu", session.infer(made.images[:size])) == [], size
        session.close()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="these instruction sets are x86's")
@pytest.mark.parametrize(
    ("instructions", "families"),
    [
        ("AVX2", ("cflow", "csflow")),
        ("AVX512_CORE", ("msflow",)),
        ("AVX512_CORE_VNNI", ("fastflow", "uflow")),
        *(
            pytest.param(one, tuple(FAMILIES), marks=pytest.mark.slow)
            for one in ("AVX2", "AVX512_CORE", "AVX512_CORE_VNNI")
        ),
    ],
)
def test_int8_is_right_with_the_instructions_of_other_processors(
    family_bundle: Callable[[str], FamilyBundle],
    instructions: str,
    families: tuple[str, ...],
    tmp_path: Path,
) -> None:
    """ONNX Runtime always takes the instructions of the processor, so only OpenVINO is tried."""
    bundles = {family: family_bundle(family) for family in families}
    for made in bundles.values():
        np.save(tmp_path / f"{made.bundle.path.stem}.npy", made.images)
    paths = [str(made.bundle.path) for made in bundles.values()]
    done = subprocess.run(
        [sys.executable, "-c", INT8_ELSEWHERE, str(tmp_path), *paths],
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": instructions},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for made in bundles.values():
        for precision in ("int8-gpu", "int8-cpu"):
            with np.load(tmp_path / f"{made.bundle.path.stem}.{precision}.npz") as answers:
                assert wrong_levels(made, precision, dict(answers)) == []


@pytest.mark.skipif(not openvino.__version__.startswith("2026.4."), reason="another OpenVINO may be right")
@pytest.mark.parametrize("family", ["msflow", "csflow"])
def test_the_limit_catches_the_wrong_kernel_that_was_seen(
    family_bundle: Callable[[str], FamilyBundle],
    family: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without its own form of signed quantisation, OpenVINO takes a Concat's quantised values for whole numbers."""
    monkeypatch.setattr("flowedge.runtime.engines.openvino.join_signed_quantisation", lambda model: None)
    monkeypatch.setenv(
        "FLOWEDGE_CACHE_DIR", str(tmp_path / "cache")
    )  # so that nothing compiled before is taken
    made = family_bundle(family)
    session = open_unproven("openvino", made.bundle, "int8-gpu")
    assert wrong_levels(made, "int8-gpu", session.infer(made.images))


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
        assert np.abs(np.array(answers[name]) - expected).max() <= LIMITS["bf16"] * scale, name
