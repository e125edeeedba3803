"""What the tests of experiments share."""

from __future__ import annotations

import pytest

from stages.core.ledger import Ledger
from tests.support.tuned_family import publish_experiment


@pytest.fixture
def tuned(ledger: Ledger) -> Ledger:
    """Profile tiny; and experiment `lr`, which shares all but the tuned model."""
    return publish_experiment(ledger)
