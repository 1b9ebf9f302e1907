"""How often clients may ask: token buckets, one for all replicas, of which each replica holds some tokens at hand.

Asking the common bucket for every request would cost a round trip each; a replica takes a few seconds' worth at a time
and gives requests away from those: all replicas together let through what one bucket would, but for what they hold.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

BURST_SECONDS = 10.0
"""A client that was quiet may ask as much at once as in so many seconds."""
LEASE_SECONDS = 1.0
"""Worth of tokens that a replica takes at a time."""


@dataclass
class Bucket:
    """Tokens of one client, which come back at a steady rate."""

    per_minute: float
    clock: Callable[[], float] = time.monotonic
    tokens: float = field(init=False)
    at: float = field(init=False)

    def __post_init__(self) -> None:
        self.tokens, self.at = self.most, self.clock()

    @property
    def most(self) -> float:
        return max(1.0, self.per_minute / 60 * BURST_SECONDS)

    def take(self, wanted: int) -> tuple[int, float]:
        """As many of the wanted tokens as there are, and the seconds until there is one where there is none."""
        now = self.clock()
        self.tokens = min(self.most, self.tokens + (now - self.at) * self.per_minute / 60)
        self.at = now
        given = min(wanted, int(self.tokens + 1e-9))
        self.tokens -= given
        return given, 0.0 if given else (1 - self.tokens) * 60 / self.per_minute


class Buckets:
    """Of all clients."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock, self.of = clock, dict[str, Bucket]()

    def take(self, client: str, per_minute: float, wanted: int) -> tuple[int, float]:
        """See `Bucket.take`."""
        bucket = self.of.get(client)
        if bucket is None or bucket.per_minute != per_minute:
            bucket = self.of[client] = Bucket(per_minute, self.clock)
        return bucket.take(wanted)


Take = Callable[[str, float, int], Awaitable[tuple[int, float]]]


class Leases:
    """A replica's share of the tokens.

    Args:
        take: of the common buckets.
    """

    def __init__(self, take: Take) -> None:
        self.take, self.at_hand = take, dict[str, int]()

    async def wait_for(self, client: str, per_minute: float) -> float:
        """0 where the client may ask now, else the seconds until it may."""
        if not self.at_hand.get(client):
            wanted = max(1, math.ceil(per_minute / 60 * LEASE_SECONDS))
            given, wait = await self.take(client, per_minute, wanted)
            if not given:
                return wait
            self.at_hand[client] = self.at_hand.get(client, 0) + given
        self.at_hand[client] -= 1
        return 0.0
