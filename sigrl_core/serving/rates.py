"""Rate limiting. One token bucket per client is shared by all replicas.

Each replica fetches about one second of tokens at a time, because a remote call per request would cost more than the
request. All replicas together admit what one bucket would, plus the tokens that they have prefetched.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

BURST_SECONDS = 10.0
"""Capacity of a bucket, in seconds of the client's rate."""
PREFETCH_SECONDS = 1.0
"""Tokens that a replica fetches at a time, in seconds of the client's rate."""


@dataclass
class TokenBucket:
    """The tokens of one client. It refills at a constant rate and starts full."""

    per_minute: float
    clock: Callable[[], float] = time.monotonic
    tokens: float = field(init=False)
    updated_at: float = field(init=False)

    def __post_init__(self) -> None:
        self.tokens, self.updated_at = self.capacity, self.clock()

    @property
    def capacity(self) -> float:
        return max(1.0, self.per_minute / 60 * BURST_SECONDS)

    def take(self, requested: int) -> tuple[int, float]:
        """Takes at most the requested number of tokens.

        Returns:
            The number of tokens taken, and the seconds until the next token if that number is 0.
        """
        now = self.clock()
        self.tokens = min(self.capacity, self.tokens + (now - self.updated_at) * self.per_minute / 60)
        self.updated_at = now
        taken = min(requested, int(self.tokens + 1e-9))
        self.tokens -= taken
        return taken, 0.0 if taken else (1 - self.tokens) * 60 / self.per_minute


class TokenBuckets:
    """The token buckets of all clients."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock, self.buckets = clock, dict[str, TokenBucket]()

    def take(self, client: str, per_minute: float, requested: int) -> tuple[int, float]:
        """Takes tokens of one client; see `TokenBucket.take`."""
        bucket = self.buckets.get(client)
        if bucket is None or bucket.per_minute != per_minute:
            bucket = self.buckets[client] = TokenBucket(per_minute, self.clock)
        return bucket.take(requested)


TakeTokens = Callable[[str, float, int], Awaitable[tuple[int, float]]]
"""Takes tokens from the shared buckets; see `TokenBuckets.take`."""


class RateLimiter:
    """Admits the requests of one replica with prefetched tokens."""

    def __init__(self, take_tokens: TakeTokens) -> None:
        self.take_tokens, self.prefetched = take_tokens, dict[str, int]()

    async def acquire(self, client: str, per_minute: float) -> float:
        """Takes one token. Returns 0 if the request is admitted, else the seconds until the next token."""
        if not self.prefetched.get(client):
            requested = max(1, math.ceil(per_minute / 60 * PREFETCH_SECONDS))
            taken, wait = await self.take_tokens(client, per_minute, requested)
            if not taken:
                return wait
            self.prefetched[client] = self.prefetched.get(client, 0) + taken
        self.prefetched[client] -= 1
        return 0.0
