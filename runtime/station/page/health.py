"""Judge if a station is alive and ready, with the reasons.

Alive means that a new start would not help. Ready means that the next part would be judged.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from flowedge.runtime.station.live import Live

LONGEST_SILENCE_S: Final = 30.0
"""The time in seconds without a sign of life after which the loop counts as hung."""


class Judged(NamedTuple):
    """The answer to one question about the station.

    Attributes:
        is_good: The answer.
        reasons: The reasons against it. Without a reason the answer is good.
    """

    is_good: bool
    reasons: tuple[str, ...]

    def to_dict(self, live: Live) -> dict[str, Any]:
        """Return the answer as JSON's own types, with the state of every part."""
        return {
            "status": "ok" if self.is_good else "failing",
            "reasons": list(self.reasons),
            "parts": {
                one.name: {"state": one.state, "text": one.text, "since": one.since} for one in live.parts
            },
        }


def liveness(live: Live) -> Judged:
    """Judge if the loop moves. A loop that has not begun yet is alive."""
    age = live.beat_age_s
    if age is not None and age > LONGEST_SILENCE_S:
        return Judged(False, (f"the loop has given no sign of life for {age:.0f} s",))
    return Judged(True, ())


def readiness(live: Live) -> Judged:
    """Judge if the station would judge the next part."""
    reasons = list(liveness(live).reasons)
    if live.beat_age_s is None:
        reasons.append("the loop has not started yet")
    reasons += [
        f"{one.name} is down: {one.text or 'no reason was given'}"
        for one in live.parts
        if one.state == "down" and one.is_needed
    ]
    return Judged(not reasons, tuple(reasons))
