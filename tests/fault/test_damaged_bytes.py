"""Damaged files: whatever the bytes, each reader gives a result or one of its own errors, in one line, within bounds.

`tests/fault/corpus/<reader>/` keeps inputs that once did worse; `every` has those that each reader gets.
"""

from __future__ import annotations

import os
import resource
import tempfile
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st

from stages.core.errors import StageError
from tests.support.damaged_bytes import READERS, Reader, damage
from tests.support.damaged_outputs import OUTPUTS
from tests.support.damaged_releases import RELEASES

EXAMPLES = int(os.environ.get("MOXIN_FAULT_TRIALS", "12"))
CORPUS = Path(__file__).with_name("corpus")
MEMORY_KIB = 512 << 10
"""What no reader of a file of some kilobytes may need beyond what was needed before."""


def read(reader: Reader, data: bytes, folder: Path) -> None:
    path = folder / reader.name
    path.write_bytes(data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    said = ""
    try:
        reader.read(path)
    except reader.raises as error:
        said = str(error) if isinstance(error, StageError) else ""
    assert "\n" not in said, f"{reader.name}: {said}"
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < MEMORY_KIB, f"{reader.name} took {grown >> 10} MiB"


@pytest.mark.parametrize("reader", [*READERS, *OUTPUTS, *RELEASES], ids=lambda reader: reader.name)
def test_a_damaged_file_gives_a_result_or_a_declared_error(reader: Reader, tmp_path: Path) -> None:
    valid = reader.valid(tmp_path)
    for known in sorted([*(CORPUS / "every").iterdir(), *(CORPUS / reader.name).glob("*")]):
        with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
            read(reader, known.read_bytes(), Path(folder))

    @hypothesis.settings(max_examples=EXAMPLES, database=None, deadline=None)
    @hypothesis.given(st.one_of(st.just(valid), damage(valid)))
    def try_it(data: bytes) -> None:
        with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
            read(reader, data, Path(folder))

    try_it()
