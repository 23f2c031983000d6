"""Inspect uploaded pictures with a web service.

    pip install fastapi uvicorn
    python examples/serve.py BUNDLE [PORT]
    curl --data-binary @photo.png http://127.0.0.1:8000/inspect

The answer is JSON with the keys of ``flowedge run --json``. One detector serves all requests. The service listens on
this machine alone, because it knows no users. Put it behind a server that does before others may reach it.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.to_thread
import uvicorn
from fastapi import FastAPI, HTTPException, Request

import flowedge

LARGEST_BODY = 20_000_000  # bytes
AT_A_TIME = 2  # inspections. Further requests wait.


def make_app(bundle: str) -> FastAPI:
    """Make the service of a bundle, which is loaded when the service starts."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with flowedge.load(bundle) as detector:
            app.state.detector = detector
            app.state.limiter = anyio.CapacityLimiter(AT_A_TIME)
            yield

    app = FastAPI(title="FlowEdge", lifespan=lifespan)

    @app.post("/inspect")
    async def inspect(request: Request) -> dict[str, Any]:
        """Inspect the picture in the body of a request."""
        # The body goes to a file piece by piece, so that neither a large one nor one without a length fills the memory.
        with tempfile.NamedTemporaryFile(prefix="upload-") as file:
            size = 0
            async for piece in request.stream():
                size += len(piece)
                if size > LARGEST_BODY:
                    raise HTTPException(413, f"a picture has at most {LARGEST_BODY} bytes")
                file.write(piece)
            file.flush()
            # The event loop stays free while a thread decodes and computes.
            return await anyio.to_thread.run_sync(
                answer, app.state.detector, file.name, limiter=app.state.limiter
            )

    return app


def answer(detector: flowedge.Detector, path: str) -> dict[str, Any]:
    """Return the findings in an uploaded picture."""
    try:
        return detector(path).to_dict()
    except flowedge.errors.ImageError as error:
        raise HTTPException(422, str(error).replace(path, "the picture")) from error


def main(bundle: str, port: str = "8000") -> None:
    uvicorn.run(make_app(bundle), host="127.0.0.1", port=int(port))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]) if len(sys.argv) in (2, 3) else __doc__)
