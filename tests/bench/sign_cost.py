"""Measure what a signature costs at each opening of a bundle, in turns with openings that require none.

    python tests/bench/sign_cost.py BUNDLE

The bundle is copied and signed with a new key. Printed are the median processor times of one opening, and what one
check of the signature takes by itself.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from flowedge.bundle import open_bundle
from flowedge.bundle_files import MANIFEST
from flowedge.runtime.registry.signing import new_key, read_signing_key, sign_folder
from flowedge.signature import check_signature

_TURNS = 30


def _ms(call: Callable[[], object]) -> float:
    begun = time.process_time()
    call()
    return (time.process_time() - begun) * 1000


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "a.flowedge"
        shutil.copytree(sys.argv[1], bundle)
        _, public = new_key(Path(folder), "release")
        key = read_signing_key(Path(folder) / "release.key")
        signing = [_ms(lambda: sign_folder(bundle, key)) for _ in range(3)]
        content = (bundle / MANIFEST).read_bytes()
        calls: dict[str, Callable[[], object]] = {
            "opening, no signature required": lambda: open_bundle(bundle, require_signature=False),
            "opening, signature required": lambda: open_bundle(bundle, require_signature=public),
            "check of the signature alone": lambda: check_signature(bundle, content, public),
        }
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(_TURNS):
            for name, call in calls.items():
                times[name].append(_ms(call))
    print(f"signing: {min(signing):.1f} ms")
    for name, values in times.items():
        print(f"{name}: {statistics.median(values):.2f} ms")


if __name__ == "__main__":
    main()
