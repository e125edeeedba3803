"""Every guide of `docs/how_to` works, from its first block to its last."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import guides
from tests.support.installation import Installation
from tests.support.limits import DAG

ALONE = [page for page in guides.pages() if not guides.needs(page) & {"docker", "slurm"}]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Services that all guides use, and the results that they share: the data before a training is made once."""
    home = tmp_path_factory.mktemp("guides") / "home"
    yield home
    Installation(home).moxin("down")


@pytest.fixture
def reader(tmp_path: Path, home: Path) -> guides.Reader:
    return guides.Reader(tmp_path, home)


@pytest.mark.slow
@pytest.mark.timeout(DAG)
@pytest.mark.parametrize("page", ALONE)
def test_a_guide_works_from_its_first_block_to_its_last(page: str, reader: guides.Reader) -> None:
    reader.follow(page, DAG)


def test_every_guide_has_something_to_run() -> None:
    assert len(guides.pages()) >= 8
    for page in guides.pages():
        assert any(block.language == "sh" for block in guides.blocks(page)), page


def test_a_diff_is_applied_at_its_one_place() -> None:
    assert guides.edit("a\nb\nc\n", " b\n+x\n") == "a\nb\nx\nc\n"
    assert guides.edit("a\nb\nc\n", "-a\n+x\n b\n") == "x\nb\nc\n"
    for diff in (" d\n+x\n", "-a\n+x\n c\n"):
        with pytest.raises(ValueError, match="0 times"):
            guides.edit("a\nb\nc\n", diff)
    with pytest.raises(ValueError, match="2 times"):
        guides.edit("a\na\n", " a\n+x\n")
