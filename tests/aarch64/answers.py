"""Inspect pictures with one precision of a bundle and keep scores, maps and verdicts, here or on a device.

python -m aarch64.answers BUNDLE PRECISION FILE PICTURE ...     prints the versions as a line of JSON
"""

from __future__ import annotations

import json
import platform
import sys

import numpy as np
import onnxruntime

import flowedge


def main() -> None:
    bundle, precision, file, *pictures = sys.argv[1:]
    with flowedge.load(bundle, engine="onnxruntime-cpu", precision=precision) as detector:
        results = [detector(picture) for picture in pictures]
    np.savez(
        file,
        score=np.array([result.score for result in results]),
        anomaly_map=np.stack([result.network_map for result in results]),
        verdict=np.array([result.verdict for result in results]),
    )
    versions = {"machine": platform.machine(), "python": platform.python_version()}
    print(json.dumps(versions | {"numpy": np.__version__, "onnxruntime": onnxruntime.__version__}))


if __name__ == "__main__":
    main()
