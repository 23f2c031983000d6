"""Read the text of a TOML file with the reader that this Python has."""

from __future__ import annotations

from typing import Any

from flowedge.errors import MissingPackageError


def toml_table(text: str) -> dict[str, Any]:
    """Return the table of a TOML text.

    Raises:
        ValueError: The text is no TOML.
        RecursionError: The text has too many tables or lists in one another.
        MissingPackageError: Python is 3.10, and tomli is not installed.
    """
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        try:
            import tomli as tomllib  # type: ignore[import-not-found,no-redef,unused-ignore]
        except ModuleNotFoundError as error:
            raise MissingPackageError(
                "Python 3.10 reads TOML by the package tomli, which is not installed. "
                "Install it with: pip install tomli"
            ) from error
    return tomllib.loads(text)
