"""Inspect every picture of a folder, and print its verdict and score.

    python examples/inspect_folder.py BUNDLE FOLDER

The exit status is 1 where a picture is not ok.
"""

from __future__ import annotations

import sys
from pathlib import Path

import flowedge


def main(bundle: str, folder: str) -> int:
    failures = 0
    with flowedge.load(bundle) as detector:
        for path in sorted(Path(folder).iterdir()):
            try:
                result = detector(path)
            except flowedge.errors.ImageError as error:
                # A picture that cannot be read was not inspected. It must never count as a good part.
                print(f"{path.name}\tnot_inspected\t{error}")
                failures += 1
                continue
            print(f"{path.name}\t{result.verdict}\t{result.score:.4f}\t{result.problem}".rstrip())
            failures += result.verdict != "ok"
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]) if len(sys.argv) == 3 else __doc__)
