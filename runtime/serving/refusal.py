"""Define the error by which a request is refused, with the words for its sender."""

from __future__ import annotations

import math
from http import HTTPStatus


class RequestError(Exception):
    """A request that is not answered with a result.

    Attributes:
        status: The HTTP status.
        text: The words for the sender.
        reason: One word for the counters.
        retry_after_s: The time in seconds after which the sender may try again. The value is None where trying again
            does not help.
    """

    def __init__(
        self,
        text: str,
        status: HTTPStatus = HTTPStatus.BAD_REQUEST,
        *,
        reason: str = "",
        retry_after_s: float | None = None,
    ) -> None:
        """Keep the words.

        Args:
            text: The words for the sender: what was wrong, the value, the limit and the next step.
            status: The HTTP status.
            reason: One word for the counters. Without it the counters say ``bad_request``.
            retry_after_s: The time in seconds after which the sender may try again.
        """
        super().__init__(text)
        self.text = text
        self.status = int(status)
        self.reason = reason or "bad_request"
        self.retry_after_s = retry_after_s

    @property
    def headers(self) -> dict[str, str]:
        """The headers of the answer."""
        if self.retry_after_s is None:
            return {}
        return {"Retry-After": str(max(1, math.ceil(self.retry_after_s)))}


def too_many(text: str, reason: str, retry_after_s: float) -> RequestError:
    """Make the error of a request that comes while there is too much to do."""
    return RequestError(text, HTTPStatus.TOO_MANY_REQUESTS, reason=reason, retry_after_s=retry_after_s)
