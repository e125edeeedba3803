"""What the tests of faults share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from stages.core.ledger import Ledger
from tests.support.s3_proxy import Proxy, proxied


@pytest.fixture
def proxy(ledger: Ledger) -> Iterator[Proxy]:
    """A proxy before the store of this test."""
    with proxied(str(ledger.store.address.endpoint)) as server:
        yield server
