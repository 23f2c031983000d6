"""Write the outcome of a soak as a table for a person and as JSON for a program."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flowedge.runtime.device.machine import cpu_name
from soak.judgement import Check


def write_report(file: Path, facts: dict[str, Any], checks: Sequence[Check]) -> bool:
    """Write the JSON, print the table, and return True where each promise was kept."""
    passed = all(check.kept for check in checks)
    whole = {
        "passed": passed,
        "processor": cpu_name(),
        **facts,
        "checks": [dataclasses.asdict(check) for check in checks],
    }
    file.write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
    print()
    for name, value in facts.items():
        if not isinstance(value, (list, dict)):
            print(f"{name.replace('_', ' '):28} {value}")
    print()
    width = max(len(check.name) for check in checks)
    for check in checks:
        print(f"{'kept  ' if check.kept else 'BROKEN'} {check.name:{width}}  {check.detail}")
    print(f"\n{'passed' if passed else 'FAILED'}, see {file}")
    return passed
