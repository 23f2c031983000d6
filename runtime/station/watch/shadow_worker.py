"""Judge frames with a second bundle in a process of its own, of the lowest priority.

The process reads one line of JSON that names the bundle, and then a line of JSON and the bytes of the pixels for each
frame. The process answers each with a line of JSON.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgspec
import numpy as np

from flowedge.errors import FlowEdgeError
from flowedge.runtime.area.settings import AreaSettings
from flowedge.runtime.device.heap import share_one_heap
from flowedge.runtime.settings import settings_from
from flowedge.runtime.station.settings import InspectSettings, ProductSettings
from flowedge.runtime.station.watch.comparison import Side, Subject

_NICEST: Final = 19


class ShadowJob(msgspec.Struct, frozen=True, kw_only=True):
    """The first line that the process reads.

    Attributes:
        product: The settings of the product, with absolute paths.
        engine: The name of the engine, or None for the first that opens.
        inspect: The settings of the inspection, with absolute paths.
        area: The settings of the area, with absolute paths.
        state: The station's folder for its state, with the changes that people have made.
    """

    product: dict[str, Any]
    engine: str | None
    inspect: dict[str, Any]
    area: dict[str, Any]
    state: str


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """The line before the pixels of a frame.

    Attributes:
        shape: The shape of the pixels.
        dtype: The type of the pixels, as NumPy names it.
        verdict: The verdict of the first bundle. Where the second one differs, a picture is wanted.
    """

    shape: tuple[int, ...]
    dtype: str
    verdict: str


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a frame.

    Attributes:
        side: The answer of the bundle. The value is None where there is a ``problem``.
        picture: The picture of the anomaly map as a ``data:`` address, where one is wanted.
        subject: The bundle, in the answer to the first line.
        problem: The reason why there is no answer.
    """

    side: Side | None = None
    picture: str | None = None
    subject: Subject | None = None
    problem: str = ""


def job_for(
    product: ProductSettings, engine: str | None, inspect: InspectSettings, area: AreaSettings, state: Path
) -> ShadowJob:
    """Describe a bundle and its settings for the process."""
    plain = [msgspec.to_builtins(one, enc_hook=_text_of_path) for one in (product, inspect, area)]
    return ShadowJob(
        product=plain[0], engine=engine, inspect=plain[1], area=plain[2], state=str(state.absolute())
    )


def main() -> None:
    """Answer frames until the input ends."""
    share_one_heap()
    _be_unimportant()
    # Libraries may print to the standard output. They get the standard error instead, so that only answers go there.
    with os.fdopen(os.dup(1), "wb", buffering=0) as answers:
        os.dup2(2, 1)
        frames = sys.stdin.buffer

        def answer(work: Callable[[], Answer]) -> None:
            try:
                result = work()
            except FlowEdgeError as error:
                result = Answer(problem=str(error))
            answers.write(msgspec.json.encode(result) + b"\n")

        judges: list[Any] = []

        def start() -> Answer:
            from flowedge.runtime.station.fitting import Fitting
            from flowedge.runtime.station.judges import open_judge
            from flowedge.runtime.station.overrides import Overrides
            from flowedge.runtime.station.watch.comparison import subject_of

            job = msgspec.json.decode(frames.readline(), type=ShadowJob)
            root = Path("/")
            area = settings_from(job.area, AreaSettings, name="the shadow's area", folder=root)
            judge = open_judge(
                settings_from(job.product, ProductSettings, name="the shadow's product", folder=root),
                job.engine,
                settings_from(job.inspect, InspectSettings, name="the shadow's inspection", folder=root),
                Fitting(area, Overrides(Path(job.state))),
            )
            judges.append(judge)
            return Answer(subject=subject_of(judge))

        answer(start)
        while judges and (line := frames.readline()):
            asked = msgspec.json.decode(line, type=Asked)
            pixels = _read_pixels(frames, asked)
            answer(lambda pixels=pixels, asked=asked: _judged(judges[0].detector, pixels, asked))  # type: ignore[misc]


def _judged(detector: Any, pixels: np.ndarray, asked: Asked) -> Answer:
    from flowedge.runtime.report.pictures import pictures_of
    from flowedge.runtime.station.watch.comparison import side_of

    (result,) = detector.detect_batch([pixels])
    side = side_of(result)
    picture = pictures_of(result.frame, result)[2] if side.verdict != asked.verdict else None
    return Answer(side=side, picture=picture)


def _read_pixels(file: BinaryIO, asked: Asked) -> np.ndarray:
    """Read the bytes of a frame.

    Raises:
        EOFError: The input ended before.
    """
    pixels = np.empty(asked.shape, asked.dtype)
    if file.readinto(pixels.data.cast("B")) != pixels.nbytes:  # type: ignore[attr-defined]
        raise EOFError("the station has ended")
    return pixels


def _be_unimportant() -> None:
    """Let everything else come first: the processor, and the memory where it is short."""
    with contextlib.suppress(OSError):
        os.nice(_NICEST)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _text_of_path(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value.absolute())
    raise NotImplementedError


if __name__ == "__main__":
    main()
