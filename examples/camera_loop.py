"""Inspect the frames of a camera or a video with OpenCV.

    python examples/camera_loop.py BUNDLE SOURCE [FOLDER]

SOURCE is a camera's number, a video or an address that OpenCV opens. A picture of the findings in each anomalous
frame is stored in FOLDER.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2

import flowedge


def main(bundle: str, source: str, folder: str = "anomalous") -> int:
    Path(folder).mkdir(parents=True, exist_ok=True)
    camera = cv2.VideoCapture(int(source) if source.isdigit() else source)
    if not camera.isOpened():
        sys.exit(f"OpenCV cannot open {source}")
    number = 0
    with flowedge.load(bundle) as detector:
        while True:
            received, frame = camera.read()
            if not received:
                break
            # OpenCV gives blue first, and nobody can tell that from the pixels.
            result = detector(frame, color="bgr")
            print(f"{number}\t{result.verdict}\t{result.score:.4f}", flush=True)
            if result.verdict == "anomalous":
                result.save(f"{folder}/{number:06}.png")
            number += 1
    camera.release()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]) if len(sys.argv) in (3, 4) else __doc__)
