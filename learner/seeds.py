"""Seeds derived from names, so that no draw depends on the order in which things happen (rule 8)."""

from __future__ import annotations

import hashlib

SEED_BITS = 31
"""vLLM and numpy both take a signed 32-bit seed; K is added to it, so one bit stays free."""


def derive_seed(*names: str | int) -> int:
    """A seed in ``[0, 2**31)`` that depends on ``names`` alone: equal on every machine and in every run."""
    text = "\0".join(str(name) for name in names)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> (64 - SEED_BITS)
