"""Every engine of this machine's CPU gives every family's answers, in float32 and float16."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from flowedge.runtime.engine import ENGINES, open_engine
from flowedge.runtime.verify import BATCH_LIMIT, PARITY_LIMITS
from support.family_graphs import FAMILIES, FamilyBundle

ON_THE_CPU = [name for name, spec in ENGINES.items() if spec.device == "cpu"]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("engine", ON_THE_CPU)
def test_an_engine_gives_what_the_unlowered_network_gives(
    family_bundle: Callable[[str], FamilyBundle], engine: str, family: str, precision: str
) -> None:
    made = family_bundle(family)
    session = open_engine(engine, made.bundle, precision)
    together = session.infer(made.images)
    assert together.keys() == made.expected.keys()
    for name, expected in made.expected.items():
        scale = max(np.abs(expected).max(), 1.0)
        assert np.abs(together[name] - expected).max() <= PARITY_LIMITS[precision] * scale, name
        for number in range(len(made.images)):
            alone = session.infer(made.images[number : number + 1])[name][0]
            assert np.abs(together[name][number] - alone).max() <= BATCH_LIMIT * scale, name
    session.close()
