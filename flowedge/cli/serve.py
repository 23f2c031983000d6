"""``flowedge serve`` answers over HTTP with the verdicts of bundles and packs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flowedge.cli.output import MESSAGES, EngineName, Json, PrecisionOption, Threads, print_json
from flowedge.cli.signals import call_on_signals
from flowedge.packages import explain_missing

if TYPE_CHECKING:
    from flowedge.runtime.serving.settings import ServeSettings

NAME = "serve"


def command(
    bundles: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="BUNDLE...",
            help="The bundles and packs. The name of a folder without its ending becomes the name of the model.",
            show_default=False,
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE",
            help="A TOML file with all settings. Options count more than the file.",
        ),
    ] = None,
    host: Annotated[
        str | None,
        typer.Option("--host", help="The address to listen on.", show_default="127.0.0.1"),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option("--port", min=0, max=65535, help="The TCP port.", show_default="8000"),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--models",
            metavar="FOLDER",
            help="A folder of bundles and packs that clients may load with --model-control.",
        ),
    ] = None,
    key_env: Annotated[
        str | None,
        typer.Option("--key-env", metavar="NAME", help="The environment variable with the key of clients."),
    ] = None,
    key_file: Annotated[
        Path | None,
        typer.Option(
            "--key-file", metavar="FILE", help="The file with the keys of clients, one on each line."
        ),
    ] = None,
    without_key: Annotated[
        bool,
        typer.Option("--without-key", help="Let every computer that reaches the address use the server."),
    ] = False,
    model_control: Annotated[
        bool, typer.Option("--model-control", help="Let clients load and unload models.")
    ] = False,
    batch: Annotated[
        int | None,
        typer.Option(
            "--batch",
            min=1,
            max=256,
            help="The most frames in one run of the engine.",
            show_default="1 on a CPU, else 8",
        ),
    ] = None,
    delay: Annotated[
        float | None,
        typer.Option(
            "--delay-ms", min=0, help="The longest time that a frame waits for others.", show_default="2"
        ),
    ] = None,
    queue: Annotated[
        int | None,
        typer.Option(
            "--queue", min=1, help="The most frames that wait. More are refused.", show_default="64"
        ),
    ] = None,
    deadline: Annotated[
        float | None,
        typer.Option(
            "--deadline-ms", min=1, help="The time in which a request is answered.", show_default="10000"
        ),
    ] = None,
    traces: Annotated[
        str | None,
        typer.Option("--traces", metavar="URL", help="The OpenTelemetry collector that gets traces."),
    ] = None,
    engine: EngineName = None,
    precision: PrecisionOption = "fp32",
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Serve bundles and packs over HTTP until SIGTERM or Ctrl-C, which let the requests that came be answered.

    The server speaks the Open Inference Protocol, version 2, and takes a JPEG or a PNG at /v1/inspect.
    """
    from flowedge.runtime.serving.settings import ModelSettings, ServeSettings
    from flowedge.runtime.settings import checked, read_settings

    settings = ServeSettings() if config is None else read_settings(config, ServeSettings)
    opened: dict[str, Any] = {"engine": engine, "precision": precision, "threads": threads}
    models = tuple(ModelSettings(bundle=bundle, **opened) for bundle in bundles or ())
    settings = checked(
        _changed(
            settings,
            {"models": (*settings.models, *models), "folder": folder},
            server={
                "host": host,
                "port": port,
                "key_env": key_env,
                "key_file": key_file,
                "without_key": without_key or None,
                "model_control": model_control or None,
            },
            batch={"largest": batch, "delay_ms": delay},
            limits={"queue": queue, "deadline_ms": deadline},
            traces={"endpoint": traces},
        )
    )
    with explain_missing("serve"):
        from flowedge.runtime.serving.server import ModelServer
    server = ModelServer(settings)
    if server.warning:
        MESSAGES.print(f"{server.warning}.", soft_wrap=True)
    with call_on_signals(server.stop), server:
        names = server.model_names
        if json:
            print_json({"url": server.url, "models": names})
        MESSAGES.print(f"serving {', '.join(names)} on {server.url}", soft_wrap=True)
        server.wait()


def _changed(settings: ServeSettings, own: dict[str, Any], **tables: dict[str, Any]) -> ServeSettings:
    """Return settings in which the options that were given replace the values of the file."""
    import msgspec

    from flowedge.runtime.serving.settings import TraceSettings

    changes = {name: value for name, value in own.items() if value is not None}
    for name, values in tables.items():
        given = {key: value for key, value in values.items() if value is not None}
        if not given:
            continue
        table = getattr(settings, name)
        changes[name] = TraceSettings(**given) if table is None else msgspec.structs.replace(table, **given)
    return msgspec.structs.replace(settings, **changes)
