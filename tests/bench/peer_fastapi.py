"""Serve anomalib's inferencer by FastAPI, as a user would write it at home, for the table of serving.

    .venv-peer/bin/python tests/bench/peer_fastapi.py model.onnx SIDE PORT [locked]

Runs in an environment with anomalib 2.7, OpenVINO and FastAPI, and without FlowEdge. The handler is a plain function,
so FastAPI runs it in its threads, and it takes an uploaded file. The inferencer resizes nothing, so a picture of
another size is resized here first, by OpenCV as anomalib's users do.

The inferencer has one request of OpenVINO, which raises "Infer Request is busy" where two threads use it. With
``locked``, a lock lets one of them after the other in.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import threading
from pathlib import Path

import cv2
import numpy as np
import uvicorn
from anomalib.deploy import OpenVINOInferencer
from fastapi import FastAPI, HTTPException, UploadFile


def main() -> None:
    model, side, port = Path(sys.argv[1]).resolve(), int(sys.argv[2]), int(sys.argv[3])
    os.chdir(tempfile.mkdtemp())  # the inferencer keeps its cache in the current folder
    inferencer = OpenVINOInferencer(path=model, device="CPU")
    precision = inferencer.model.get_property("INFERENCE_PRECISION_HINT").to_string()
    turn: contextlib.AbstractContextManager[object] = (
        threading.Lock() if "locked" in sys.argv else contextlib.nullcontext()
    )
    app = FastAPI()

    @app.get("/readyz")
    def ready() -> dict[str, str]:
        return {"engine": f"OpenVINO, {precision}"}

    def inspect(file: UploadFile) -> dict[str, object]:
        picture = cv2.imdecode(np.frombuffer(file.file.read(), np.uint8), cv2.IMREAD_COLOR_RGB)
        if picture is None:
            raise HTTPException(422, "no picture")
        if picture.shape[:2] != (side, side):
            picture = cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA)
        with turn:
            found = inferencer.predict(picture)
        return {"score": float(found.pred_score.item()), "anomalous": bool(found.pred_label.item())}

    # FastAPI reads annotations from the module, where the name of a local class would be missing.
    inspect.__annotations__ = {"file": UploadFile, "return": dict[str, object]}
    app.post("/v1/inspect")(inspect)
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error")


if __name__ == "__main__":
    main()
