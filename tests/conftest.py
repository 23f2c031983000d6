"""The few fixtures that several suites share."""

from __future__ import annotations

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = REPOSITORY.parent / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The records and photographs beside the checkout; tests that need them are skipped where they are not."""
    if not SHARED.is_dir():
        pytest.skip("the shared records (../shared) are not beside this checkout")
    return SHARED
