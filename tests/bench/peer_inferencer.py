"""Time anomalib's ``OpenVINOInferencer`` on JPEG files, for the station's cost.

    .venv-peer/bin/python tests/bench/peer_inferencer.py model.onnx SIDE [PRECISION]

Runs in an environment with anomalib 2.7 and OpenVINO, and without FlowEdge. Each line of the standard input is a task,
``predict FOLDER COUNT``. The answer is a line of JSON with the milliseconds of each frame and the processor's time.
The inferencer resizes nothing, so a picture of another size is resized here first, by OpenCV as anomalib's users do.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
from anomalib.data.utils import read_image
from anomalib.deploy import OpenVINOInferencer

_WARM_UP = 5


def main() -> None:
    model, side = Path(sys.argv[1]).resolve(), int(sys.argv[2])
    os.chdir(tempfile.mkdtemp())  # the inferencer keeps its cache in the current folder
    # Without a precision, OpenVINO takes bfloat16 where the processor has it.
    config = {"INFERENCE_PRECISION_HINT": sys.argv[3]} if len(sys.argv) > 3 else None
    inferencer = OpenVINOInferencer(path=model, device="CPU", config=config)
    precision = inferencer.model.get_property("INFERENCE_PRECISION_HINT").to_string()
    print(json.dumps({"engine": f"OpenVINO, {precision}"}), flush=True)

    def predict(file: Path) -> Any:
        picture = read_image(file, as_tensor=False)
        if picture.shape[:2] == (side, side):
            return inferencer.predict(file)
        return inferencer.predict(cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA))

    for line in sys.stdin:
        _, folder, count = line.split()
        files = sorted(Path(folder).glob("*.jpg"))
        files = [files[number % len(files)] for number in range(int(count))]
        for file in files[:_WARM_UP]:
            predict(file)
        taken = []
        cpu = time.process_time()
        for file in files:
            start = time.perf_counter()
            predict(file)
            taken.append(1000 * (time.perf_counter() - start))
        cpu_ms = 1000 * (time.process_time() - cpu)
        print(json.dumps({"ms": taken, "wall_ms": sum(taken), "cpu_ms": cpu_ms}), flush=True)


if __name__ == "__main__":
    main()
