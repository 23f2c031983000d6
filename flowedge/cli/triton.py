"""``flowedge triton`` writes a model repository for NVIDIA Triton Inference Server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from flowedge.cli.output import (
    MESSAGES,
    RESULTS,
    EngineName,
    Force,
    Json,
    PrecisionOption,
    Threads,
    print_json,
)
from flowedge.text import printable

NAME = "triton"


def command(
    bundle: Annotated[
        Path, typer.Argument(help="The bundle, the pack, or one product of a pack.", show_default=False)
    ],
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            help="The folder of the repository. Models are added to those that are there.",
            show_default=False,
        ),
    ] = ...,  # type: ignore[assignment]
    name: Annotated[
        str | None,
        typer.Option(
            "--name", help="The name of the model.", show_default="the name of the folder without its ending"
        ),
    ] = None,
    backend: Annotated[
        Literal["python", "onnxruntime", "tensorrt"],
        typer.Option(
            "--backend",
            help="The part of Triton that runs the graph. With python one model does "
            "everything, with the others an ensemble of three does.",
        ),
    ] = "python",
    engine: EngineName = None,
    precision: PrecisionOption = "fp32",
    threads: Threads = None,
    gpu: Annotated[bool, typer.Option("--gpu", help="Run the graph on the server's GPUs.")] = False,
    instances: Annotated[
        int,
        typer.Option(
            "--instances", min=1, max=64, help="The number of instances of the graph, on each GPU with --gpu."
        ),
    ] = 1,
    batch: Annotated[
        int, typer.Option("--batch", min=1, max=256, help="The most frames in one run of the graph.")
    ] = 8,
    delay: Annotated[
        float, typer.Option("--delay-ms", min=0, help="The longest time that a frame waits for others.")
    ] = 2.0,
    python: Annotated[
        Path | None,
        typer.Option(
            "--python",
            metavar="FOLDER",
            help="The virtual environment on the server that has FlowEdge.",
            show_default="the Python that Triton finds",
        ),
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option(
            "--plan", metavar="FILE", help="The engine for --backend tensorrt, as flowedge build has made it."
        ),
    ] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Write a bundle or a pack into a model repository of NVIDIA Triton Inference Server.

    The model takes and gives the tensors of flowedge serve, so clients run unchanged against both.
    """
    from flowedge.runtime.serving.triton_files import TritonSettings
    from flowedge.runtime.serving.triton_repository import write_repository

    settings = TritonSettings(
        name=name,
        backend=backend,
        engine=engine,
        precision=precision,
        threads=threads,
        gpu=gpu,
        instances=instances,
        batch=batch,
        delay_ms=delay,
        python=python,
        plan=plan,
    )
    models = write_repository(bundle, output, settings, overwrite=force)
    if json:
        print_json({"repository": str(output), "model": models[-1], "models": models})
        return
    RESULTS.print(
        f"{printable(str(output))} has {', '.join(models)}. Clients call {models[-1]}.", soft_wrap=True
    )
    MESSAGES.print(
        f"load it with: tritonserver --model-repository {printable(str(output))} --model-control-mode explicit "
        f"--load-model {models[-1]}",
        soft_wrap=True,
    )
