"""How large a Bloom filter must be, and what it then holds falsely: sums alone, for the plan and for the filter."""

from __future__ import annotations

import math

FALSE_POSITIVES = 0.01
"""Of DCLM-BASELINE: `--fp-rate 0.01` (dedup/bff of the DCLM repository)."""
BYTES_PER_NGRAM = 6
"""Text for each expected n-gram: about one word in six bytes of English."""
BLOCK_BITS = 512
"""A cache line."""


def expected_rate(bits_per_item: float, probes: int) -> float:
    """False positives of a blocked filter: the number of items in a block is Poisson distributed."""
    mean = BLOCK_BITS / bits_per_item
    rate, weight = 0.0, math.exp(-mean)
    for items in range(int(mean + 12 * math.sqrt(mean)) + 12):
        rate += weight * (1 - (1 - 1 / BLOCK_BITS) ** (probes * items)) ** probes
        weight *= mean / (items + 1)
    return rate


def dimensions(expected: int, false_positives: float = FALSE_POSITIVES) -> tuple[int, int]:
    """Blocks and probes of a filter for `expected` items."""
    bits = -math.log(false_positives) / math.log(2) ** 2
    while expected_rate(bits, probes := max(1, round(bits * math.log(2)))) > false_positives:
        bits *= 1.01
    return max(16, math.ceil(expected * bits / BLOCK_BITS)), probes


def filter_bytes(text_bytes: float) -> int:
    """Memory of the filter for so much text."""
    return dimensions(max(1, int(text_bytes) // BYTES_PER_NGRAM))[0] * BLOCK_BITS // 8
