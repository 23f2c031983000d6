"""Thousands of damaged checkpoints, bundles and pictures break no promise."""

from __future__ import annotations

from pathlib import Path

from fuzz.run import fuzz

CASES = 2000


def test_damaged_inputs_break_no_promise(tmp_path: Path) -> None:
    tally = fuzz(CASES, folder=tmp_path, say=False)
    assert not tally.faults, "\n".join(f"case {number}: {why}" for number, why in tally.faults[:10])
    assert sum(tally.outcomes.values()) == CASES
    # A seed that is never accepted would make every case pass.
    assert {"accepted", "answered as before", "read as Pillow does", "refused"} <= tally.outcomes.keys()
