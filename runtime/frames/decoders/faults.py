"""Errors for pictures that cannot be decoded, and the checks of their size before memory is allocated."""

from __future__ import annotations

from typing import Final

from flowedge.runtime.device.limits import MAX_SAMPLE_BYTES, size_problem

CUT_OFF: Final = "it is cut off"


class DamagedError(Exception):
    """Raised for a file that breaks its own format. The text says where."""


class RefusedError(Exception):
    """Raised for a file of a variant or a size that is not read. The text completes "PATH ..." and says what to do."""


def check_picture_size(height: int, width: int) -> None:
    """Check the size that a header says, before anything is allocated for it.

    Raises:
        DamagedError: A side is not positive.
        RefusedError: The size exceeds a limit.
    """
    if height < 1 or width < 1:
        raise DamagedError(f"its header says {width}x{height} pixels")
    problem = size_problem(height, width)
    if problem is not None:
        raise RefusedError(problem)


def check_sample_bytes(size: int) -> None:
    """Check the bytes that all samples of a file will take, before anything is allocated for them.

    Raises:
        RefusedError: There are more than `MAX_SAMPLE_BYTES`.
    """
    if size > MAX_SAMPLE_BYTES:
        raise RefusedError(
            f"has {size / 1e6:.0f} MB of samples, more than {MAX_SAMPLE_BYTES / 1e6:.0f}. Cut it into pieces, or save "
            "it with fewer channels or bits."
        )


def check_parts(count: int, most: int) -> None:
    """Check how many parts a file has, each of which costs time however short it is.

    Raises:
        RefusedError: There are more than ``most``.
    """
    if count > most:
        raise RefusedError(f"is made of more than {most} parts. Save it again with another program.")


def several_pictures(kind: str) -> RefusedError:
    """Return the refusal of a file that holds more than the one picture that a verdict would be about."""
    return RefusedError(f"is {kind} with several pictures. Save the one to inspect as a file of its own.")
