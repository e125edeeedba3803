"""A whole installation in a folder of its own: the services of `moxin up`, the command line, runs to break."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.installation import Installation


@pytest.fixture(scope="session")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """Running services in a folder of their own; stopped at the end."""
    found = Installation(tmp_path_factory.mktemp("moxin") / "home")
    found.moxin("up")
    yield found
    found.moxin("down")
