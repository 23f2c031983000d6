"""Decide who may change something: a token, compared in constant time, with a limit on wrong attempts.

There is no session and no cookie. Each change carries the token itself, in a header or in a field of its form. So a
page of another site, which does not know the token, cannot make a browser change anything.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, Literal, TypeAlias

Answer: TypeAlias = Literal["allowed", "wrong", "too many", "read only"]

_ATTEMPTS: Final = 5
_WINDOW_S: Final = 60.0
_ALL_ATTEMPTS: Final = 30
_MOST_ADDRESSES: Final = 1000


class Access:
    """The token of one station, and the wrong attempts of the last minute.

    After five wrong attempts of one address within a minute, or thirty of all addresses, no further attempt of that
    address, or of any, is even compared until the minute is over.
    """

    def __init__(self, token: str | None, clock: Callable[[], float] = time.monotonic) -> None:
        """Take the token.

        Args:
            token: The token. None allows no change to anyone.
            clock: The monotonic clock in seconds.
        """
        self._digest = None if token is None else _digest(token)
        self._clock = clock
        self._wrong: OrderedDict[str, list[float]] = OrderedDict()

    @property
    def is_read_only(self) -> bool:
        """True where there is no token, so nobody may change anything."""
        return self._digest is None

    def check(self, token: str, address: str) -> Answer:
        """Compare a token.

        Args:
            token: The token of a request.
            address: The address of the request's sender.
        """
        if self._digest is None:
            return "read only"
        self._forget()
        attempts = self._wrong.get(address, [])
        everyone = sum(len(one) for one in self._wrong.values())
        if len(attempts) >= _ATTEMPTS or everyone >= _ALL_ATTEMPTS:
            return "too many"
        # The digests have one length, so the time of the comparison tells nothing about the token, not even its length.
        if hmac.compare_digest(_digest(token), self._digest):
            return "allowed"
        self._wrong[address] = [*attempts, self._clock()]
        self._wrong.move_to_end(address)
        while len(self._wrong) > _MOST_ADDRESSES:
            self._wrong.popitem(last=False)
        return "wrong"

    def _forget(self) -> None:
        since = self._clock() - _WINDOW_S
        for address, times in list(self._wrong.items()):
            kept = [one for one in times if one > since]
            if kept:
                self._wrong[address] = kept
            else:
                del self._wrong[address]


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
