"""Data sets found by the hub's names in whatever mirror has them."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from stages.core.errors import InputError
from stages.evaluate.mirrors import Mirrors, joint_fingerprint
from stages.lib.formats.suites import DataSet, Suite, split_fingerprints, write_data_set, write_suite


def mirror(folder: Path, id: str, *configs: str, origin: str = "hub") -> Path:
    content = {name: {"test": pa.table({"question": [name, id]})} for name in configs}
    rows, fingerprint = write_data_set(folder, id, content), split_fingerprints(content)
    write_suite(folder, Suite(data_sets=(DataSet(id=id, origin=origin, rows=rows, fingerprint=fingerprint),)))  # type: ignore[arg-type]
    return folder


def test_a_configuration_is_taken_from_the_first_mirror_that_holds_it(tmp_path: Path) -> None:
    one, two = (
        mirror(tmp_path / "one", "a/b", "main"),
        mirror(tmp_path / "two", "a/b", "main", "other", origin="machine"),
    )
    mirrors = Mirrors([one, two])
    main, other, unnamed = (mirrors.find("a/b", config) for config in ("main", "other", None))
    assert main
    assert other
    assert unnamed
    assert (main.folder, other.folder, unnamed.folder) == (one / "a/b", two / "a/b", one / "a/b")
    assert (main.synthetic, other.synthetic) == (False, True)
    assert mirrors.find("a/b", "third") is None
    assert mirrors.find("a/c", None) is None
    assert mirrors.names == ["a/b"]


def test_fingerprints_of_several_splits_are_one_whatever_their_order(tmp_path: Path) -> None:
    mirrors = Mirrors([mirror(tmp_path, "a/b", "main", "other")])
    main, other = mirrors.find("a/b", "main"), mirrors.find("a/b", "other")
    assert main
    assert other
    assert joint_fingerprint([(main, "test")]) == main.fingerprint("test") != other.fingerprint("test")
    both = joint_fingerprint([(main, "test"), (other, "test")])
    assert both == joint_fingerprint([(other, "test"), (main, "test")])
    assert both not in (None, main.fingerprint("test"), other.fingerprint("test"))
    assert joint_fingerprint([(main, "test"), (other, "validation")]) is None


def test_a_damaged_mirror_is_named(tmp_path: Path) -> None:
    (tmp_path / "suite.json").write_text("{")
    with pytest.raises(InputError, match=r"^suite\.json of the evaluation suite cannot be read: "):
        Mirrors([tmp_path])
