"""How many examples of a property are tried: all in `make test`, a quarter of them in `make test-fast`."""

from __future__ import annotations

import hypothesis

FULL = 60
"""Examples of a property that names no number of its own (profile `moxin`)."""
FAST = 15
"""In profile `fast`, which `make test-fast` chooses."""


def max_examples(count: int) -> hypothesis.settings:
    """A decorator: so many examples in the whole suite, for a property that is dear, or that needs more than `FULL`."""
    return hypothesis.settings(max_examples=max(5, count * hypothesis.settings.default.max_examples // FULL))
