"""An export is verified on the same engine on every machine."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import pytest

from flowedge.bundle import Bundle
from flowedge.export.pipeline import ExportOptions, export_bundle
from flowedge.runtime.opening import engine as engine_file
from flowedge.runtime.opening.engine import ENGINES
from flowedge.runtime.opening.engine_contract import EngineSpec, Opening
from flowedge.runtime.opening.unproven import open_unproven


class WrongJudgeError(Exception):
    pass


@pytest.fixture
def faster_engine(monkeypatch: pytest.MonkeyPatch) -> str:
    """Pretend an engine that is chosen before all others, as CUDA's is on a workstation."""

    def load(opening: Opening) -> NoReturn:
        raise WrongJudgeError(opening.precision)

    module = ModuleType("pretended_engine")
    module.load = load  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    spec = EngineSpec(
        name="pretended", module=module.__name__, needs="numpy", extra="ort", device="nvidia gpu", order=-1
    )
    monkeypatch.setattr(engine_file, "ENGINES", {spec.name: spec, **ENGINES})
    return spec.name


def test_an_export_is_verified_on_the_same_engine_on_every_machine(
    faster_engine: str, small_checkpoint: Path, tmp_path: Path
) -> None:
    extended: list[Bundle] = []

    def extend(bundle: Bundle) -> Bundle:
        extended.append(bundle)
        return bundle

    result = export_bundle(small_checkpoint, tmp_path / "a.flowedge", ExportOptions(), extend=extend)
    assert all(check.passed for check in result.checks["fp32"])
    assert [bundle.manifest for bundle in extended] == [result.bundle.manifest]
    with pytest.raises(WrongJudgeError):  # the pretended engine is the machine's first choice
        open_unproven(None, result.bundle, "fp32")
