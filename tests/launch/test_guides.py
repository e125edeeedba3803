"""The guides that need a container runtime or a cluster (tests/support/guides.py runs them)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import guides
from tests.support.installation import Installation
from tests.support.limits import DAG

pytestmark = [pytest.mark.slow, pytest.mark.container]


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[guides.Reader]:
    yield guides.Reader(tmp_path, tmp_path / "home")
    Installation(tmp_path / "home").moxin("down")


def test_the_guide_to_docker_works(docker_client: Any, reader: guides.Reader) -> None:
    assert "docker" in guides.needs("run_on_docker.md")
    reader.follow("run_on_docker.md", DAG)


def test_the_guide_to_slurm_works(slurm_cluster: None, reader: guides.Reader) -> None:
    assert "slurm" in guides.needs("run_on_slurm.md")
    reader.follow("run_on_slurm.md", DAG)
