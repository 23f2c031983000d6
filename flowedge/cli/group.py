"""Import each command when it is used, and give every command the options of the whole command line."""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Annotated, Any, Final, NamedTuple

import typer.core
import typer.main

from flowedge.cli import verbosity


class Listed(NamedTuple):
    """The module of a command, and the line that ``flowedge --help`` shows.

    Attributes:
        module: The module, which holds either the function ``command`` or, for a group, the Typer ``app``.
        summary: The first line of the command's own help.
        opens_bundles: True for a command that takes ``--require-signature``, since it opens bundles to use them.
    """

    module: str
    summary: str
    opens_bundles: bool = True


COMMANDS: Final[Mapping[str, Listed]] = MappingProxyType(
    {
        "export": Listed(
            "flowedge.cli.export",
            "Export a trained checkpoint to a bundle, and check it against the original network.",
            opens_bundles=False,
        ),
        "info": Listed(
            "flowedge.cli.info",
            "Show what a checkpoint or a bundle is, which values were assumed, and what is in it.",
        ),
        "verify": Listed("flowedge.cli.verify", "Replay the self-test of a bundle on this machine."),
        "calibrate": Listed(
            "flowedge.cli.calibrate",
            "Fit the score maxima and the thresholds of every precision, and store them in the bundle.",
        ),
        "eval": Listed(
            "flowedge.cli.evaluate",
            "Measure a bundle on a labelled dataset: AUROC of images and pixels, AUPRO and F1.",
        ),
        "threshold": Listed(
            "flowedge.cli.threshold",
            "Show, set or fit the thresholds of a bundle, which keeps a history of their changes.",
        ),
        "run": Listed(
            "flowedge.cli.run",
            "Inspect images and print a row with the verdict of each as soon as it is known.",
        ),
        "station": Listed(
            "flowedge.cli.station",
            "Run an inspection station: from a camera to a verdict, a journal and a PLC.",
        ),
        "serve": Listed(
            "flowedge.cli.serve",
            "Serve bundles and packs over HTTP until SIGTERM or Ctrl-C, which let the requests that came be answered.",
        ),
        "triton": Listed(
            "flowedge.cli.triton",
            "Write a bundle or a pack into a model repository of NVIDIA Triton Inference Server.",
        ),
        "batch": Listed(
            "flowedge.cli.batch",
            "Judge archives of images into Parquet, by many processes or a cluster, with exactly one row an image.",
        ),
        "compare": Listed(
            "flowedge.cli.compare",
            "Tell what changed between two results of the same images: verdicts, scores, and errors by labels.",
            opens_bundles=False,
        ),
        "pack": Listed(
            "flowedge.cli.pack",
            "Pack bundles that have the same backbone: one graph of the backbone, and a small head for each product.",
        ),
        "sign": Listed(
            "flowedge.cli.sign",
            "Sign bundles and packs, so that devices with --require-signature open them.",
            opens_bundles=False,
        ),
        "push": Listed(
            "flowedge.cli.push",
            "Push a bundle or a pack to an OCI registry, an object store or a shared folder.",
        ),
        "pull": Listed(
            "flowedge.cli.pull",
            "Pull a bundle or a pack, and put it in its place when all of it is there and right.",
        ),
        "rollout": Listed(
            "flowedge.cli.rollout",
            "Say in a signed file which version of a bundle which stations run.",
            opens_bundles=False,
        ),
        "keys": Listed(
            "flowedge.cli.keys",
            "Make a key for signatures, or list the keys that a machine trusts.",
            opens_bundles=False,
        ),
        "bench": Listed(
            "flowedge.cli.bench",
            "Time bundles on every engine and precision in turns, each in its own process, and check their answers.",
        ),
        "build": Listed(
            "flowedge.cli.build",
            "Compile one graph of a bundle for this machine and keep it in the device cache.",
        ),
        "doctor": Listed(
            "flowedge.cli.doctor",
            "Try every engine on a small graph, and list the installed and the missing packages.",
            opens_bundles=False,
        ),
        "demo": Listed(
            "flowedge.cli.demo",
            "Train a small CFLOW on real photographs, export, verify, calibrate and run it, and write a report.",
            opens_bundles=False,
        ),
        "cache": Listed(
            "flowedge.cli.cache",
            "List or delete the engines that were compiled for this machine.",
            opens_bundles=False,
        ),
    }
)
"""Every command in the order of the help. The help is printed without the modules, since their imports take time."""


class _Commands(Mapping[str, Any]):
    """The commands by name. Each one is imported and made when it is asked for."""

    def __getitem__(self, name: str) -> Any:
        return _command(name, COMMANDS[name])

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


class _Group(typer.core.TyperGroup):
    """A group whose own options cost no import of a large library."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the options before the command. A flag that is not given is False instead of None."""
        options: list[Any] = super().get_params(ctx)
        # Typer's own flags, for help and completion, have no value, and Typer imports pydantic to convert it.
        for option in options:
            if getattr(option, "is_flag", False) and option.default is None:
                option.default = False
        return options


class CommandGroup(_Group):
    """The group of all commands, whose modules are imported one by one when a command is used."""

    def __init__(self, **settings: Any) -> None:
        """Make the group with the options of all commands."""
        super().__init__(**settings)
        self.commands = _Commands()  # type: ignore[assignment]
        self.params.extend(_common_options())

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names in the order of the help."""
        return list(COMMANDS)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write each command's line without importing the command."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, listed.summary) for name, listed in COMMANDS.items()])


def new_group(name: str, **settings: Any) -> typer.Typer:
    """Return an empty group of commands in the style of the command line.

    Args:
        name: The name of the group.
        settings: More arguments of `typer.Typer`, such as ``help``.
    """
    return typer.Typer(
        name=name,
        cls=_Group,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        **settings,
    )


@functools.cache
def _command(name: str, listed: Listed) -> Any:
    """Import the module of a command and return the command with the options that many commands share."""
    imported = importlib.import_module(listed.module)
    app: typer.Typer | None = getattr(imported, "app", None)
    if app is None:
        app = new_group(name)
        app.command(name)(imported.command)
        made = typer.main.get_command(app)
    else:
        made = typer.main.get_group(app)
    made.name = name
    _add_common_options(made)
    if listed.opens_bundles:
        _add_signature_option(made)
    return made


def _add_common_options(command: Any) -> None:
    """Give a command and all commands of a group the options ``-h``, ``-q`` and ``-v``."""
    # A command keeps its option for help from the first context that asks, which may be one without a parent.
    command.context_settings.setdefault("help_option_names", ["-h", "--help"])
    command.params.extend(_common_options())
    for inner in getattr(command, "commands", {}).values():
        _add_common_options(inner)


def _add_signature_option(command: Any) -> None:
    """Give a command, or all commands of a group, the option ``--require-signature``."""
    inner = getattr(command, "commands", None)
    if inner is None:
        command.params.extend(_options_from(_signature_options))
    else:
        for one in inner.values():
            _add_signature_option(one)


def _require_signature(context: typer.Context, keys: str | None) -> None:
    """Set the environment variable that every opening of a bundle looks at, also in the processes of this command."""
    if keys is None:
        return
    from flowedge.signature import ENVIRONMENT  # imported here, since --help checks no signature

    restored = contextlib.ExitStack()
    before = os.environ.get(ENVIRONMENT)
    if before is None:
        restored.callback(os.environ.pop, ENVIRONMENT, None)
    else:
        restored.callback(os.environ.__setitem__, ENVIRONMENT, before)
    os.environ[ENVIRONMENT] = os.path.abspath(keys)
    context.call_on_close(restored.close)


def _signature_options(
    require_signature: Annotated[
        str | None,
        typer.Option(
            "--require-signature",
            metavar="KEYS",
            callback=_require_signature,
            help="Open only what a key of this file or folder of public keys has signed.",
            show_default="FLOWEDGE_REQUIRE_SIGNATURE",
        ),
    ] = None,
) -> None:
    """Declare the option that every command has which opens bundles."""


def _quiet(wanted: bool) -> None:
    if wanted:
        verbosity.set_verbosity(verbosity.QUIET)


def _verbose(wanted: bool) -> None:
    if wanted:
        _log(verbosity.INFO)


def _debug(wanted: bool) -> None:
    if wanted:
        _log(verbosity.DEBUG)


def _log(level: int) -> None:
    from flowedge.cli.logs import show_log  # imported here, since most commands show no log

    verbosity.set_verbosity(level)
    show_log(level)


# All are flags. Typer imports a large library to convert the value of any other option.
def _options_of_all(
    quiet: Annotated[
        bool,
        typer.Option(
            "--quiet", "-q", callback=_quiet, help="Print results and errors alone: no progress, no notes."
        ),
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose",
            "-v",
            callback=_verbose,
            help="Log each step to standard error: files, engines, times.",
        ),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", "-vv", callback=_debug, help="Log every detail to standard error.")
    ] = False,
) -> None:
    """Declare the options that every command has."""


def _common_options() -> list[Any]:
    """Return new options ``-q`` and ``-v``."""
    return _options_from(_options_of_all)


def _options_from(declared: Callable[..., None]) -> list[Any]:
    """Return new options that no command's function takes: their callbacks do the work."""
    app = new_group("")
    app.command()(declared)
    options: list[Any] = typer.main.get_command(app).params
    for option in options:
        option.expose_value = False
    return options
