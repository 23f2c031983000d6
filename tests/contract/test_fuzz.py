"""Thousands of damaged checkpoints, bundles and pictures break no promise."""

from __future__ import annotations

from pathlib import Path

import pytest

from fuzz.run import fuzz
from support.artifacts import made_once

CASES = 400
MORE = 1000


@pytest.fixture(scope="session")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The valid inputs that are damaged."""

    def make(folder: Path) -> None:
        from fuzz.seeds import write_seeds  # with PyTorch, which most of this process does without

        write_seeds(folder / "seeds")

    return made_once(tmp_path_factory, "fuzz", make) / "seeds"


@pytest.mark.parametrize(
    ("first", "cases"),
    [(0, CASES), *(pytest.param(n, MORE, marks=pytest.mark.slow) for n in (CASES, CASES + MORE))],
)
def test_damaged_inputs_break_no_promise(seeds: Path, tmp_path: Path, first: int, cases: int) -> None:
    tally = fuzz(cases, first=first, seeds=seeds, folder=tmp_path, say=False)
    assert not tally.faults, "\n".join(f"case {number}: {why}" for number, why in tally.faults[:10])
    assert sum(tally.outcomes.values()) == cases
    # A seed that is never accepted would make every case pass.
    assert {"accepted", "answered as before", "read as Pillow does", "refused"} <= tally.outcomes.keys()
