"""The server's limits and defaults."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Keeps the server up whatever it is sent; how it answers requests that do not say."""

    body_bytes: int = 1 << 20
    """Longest body of a request."""
    messages: int = 512
    """Most messages of a conversation."""
    samples: int = 16
    """Most answers to one request."""
    max_tokens: int = 1024
    """Longest answer."""
    in_flight: int = 256
    """Most answers that may run or wait; further requests are told when to come back."""
    seconds: float = 300.0
    """Longest time for one request, waiting included."""
    temperature: float = 0.6
    """Sampling temperature, where the request does not say: 0 takes the likeliest token."""
    top_k: int | None = 50
    """Sample from this many likeliest tokens, where the request does not say."""
