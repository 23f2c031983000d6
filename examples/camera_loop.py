"""Inspect the frames of a camera or a video with OpenCV.

    python examples/camera_loop.py BUNDLE SOURCE [FOLDER]

SOURCE is a camera's number, a video or an address that OpenCV opens. Each anomalous frame is stored in FOLDER
with the outline of the anomalous region.
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
            # OpenCV gives blue first, and a detector takes red first.
            result = detector(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
            print(f"{number}\t{result.verdict}\t{result.score:.4f}")
            if result.verdict == "anomalous" and result.mask is not None:
                outlines, _ = cv2.findContours(
                    result.mask.astype("uint8"), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
                )
                cv2.drawContours(frame, outlines, -1, (0, 0, 255), 2)
                cv2.imwrite(f"{folder}/{number:06}.png", frame)
            number += 1
    camera.release()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
