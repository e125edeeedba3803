"""Indexes: the files of large artifacts as trees of pages. A real store."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.core import index
from stages.core.artifacts import ArtifactManifest, FileEntry
from stages.core.errors import InputError
from stages.core.index import index_digest, index_objects, read_index, write_index
from stages.core.keys import artifact_digest
from stages.core.ledger import Ledger
from stages.core.messages import InputRef, StageResult
from stages.core.store_errors import Damaged
from tests.support.probe_pipeline import KEY, result_with


def files(count: int, folder: str = "objects/stage/key/000001/out") -> list[FileEntry]:
    return [
        FileEntry(
            path=f"part-{n:06d}", size=n, sha256=hashlib.sha256(str(n).encode()).hexdigest(), object=f"{folder}/{n:06d}"
        )
        for n in range(count)
    ]


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> int:
    """Pages of four rows: a tree of three levels from 17 files on."""
    monkeypatch.setattr(index, "ROWS", 4)
    return 4


@pytest.mark.parametrize(("count", "pages"), [(0, 1), (1, 1), (4, 1), (5, 3), (16, 5), (17, 8), (64, 21)])
def test_what_is_written_is_read(ledger: Ledger, narrow: int, count: int, pages: int) -> None:
    written = files(count)
    root = write_index(ledger.store, "objects/a", written)
    assert (root.files, root.bytes, root.pages) == (count, sum(range(count)), pages)
    assert read_index(ledger.store, root) == written
    names = index_objects(ledger.store, root)
    assert sorted(names) == [row.key for row in ledger.store.list("objects/a/")]
    assert len(names) == pages
    assert root.digest == index_digest(written)


def test_the_digest_is_of_the_contents_not_of_the_places(ledger: Ledger, narrow: int) -> None:
    here, there = (write_index(ledger.store, f"objects/{name}", files(30, name)) for name in ("a", "b"))
    assert here.digest == there.digest
    assert here.object != there.object


@given(st.integers(0, 40), st.data())
def test_any_other_row_gives_another_digest(count: int, data: Any) -> None:
    rows = files(count + 1)
    number = data.draw(st.integers(0, count))
    name, value = data.draw(st.sampled_from([("path", "other"), ("size", 10**6), ("sha256", "f" * 64)]))
    changed = [*rows[:number], rows[number].model_copy(update={name: value}), *rows[number + 1 :]]
    assert index_digest(changed) != index_digest(rows)
    assert index_digest(rows[:-1]) != index_digest(rows)
    placed = [row.model_copy(update={"object": "elsewhere", "blocks": "00000000", "detail": "{}"}) for row in rows]
    assert index_digest(placed) == index_digest(rows)


def test_lost_and_overwritten_pages_are_damage(ledger: Ledger, narrow: int) -> None:
    root = write_index(ledger.store, "objects/a", files(30))
    page = next(name for name in index_objects(ledger.store, root) if "/0-" in name)  # one that lists files
    body = ledger.store.get(page)
    assert body is not None
    ledger.store.put(page, body[0].replace(b"part-", b"trap-"))
    with pytest.raises(Damaged, match="is not the page that was written there") as error:
        read_index(ledger.store, root)
    assert error.value.key == page
    ledger.store.delete([page])
    with pytest.raises(Damaged, match="a page of an index, is not in the store"):
        read_index(ledger.store, root)
    ledger.store.put(root.object, b"{}x")
    with pytest.raises(Damaged, match="is not the page"):
        index_objects(ledger.store, root)


def indexed(ledger: Ledger, count: int = 30) -> StageResult:
    """A published result whose one output has an index; its files lie in the store."""
    result = result_with()
    prefix = f"objects/{result.stage}/{result.key}/000001"
    rows = []
    for n in range(count):
        ledger.store.put(f"{prefix}/documents/{n:03d}", body := str(n).encode())
        digest = hashlib.sha256(body).hexdigest()
        rows.append(FileEntry(path=f"{n:03d}", size=len(body), sha256=digest, object=f"{prefix}/documents/{n:03d}"))
    root = write_index(ledger.store, f"{prefix}/.index/documents", rows)
    manifest = ArtifactManifest(
        type="Documents", digest=artifact_digest("Documents", {}, index=root.digest), facets={}, index=root
    )
    return result.model_copy(update={"outputs": {"documents": manifest}})


def test_a_plan_looks_for_pages_and_a_deep_one_for_files(ledger: Ledger, narrow: int) -> None:
    result = indexed(ledger)
    (manifest,) = result.outputs.values()
    assert (manifest.count, manifest.size) == (30, 50)
    assert ledger.missing_objects(result, deep=True) == []
    lost = ledger.entries(manifest)[7].object
    ledger.store.delete([lost])
    assert ledger.missing_objects(result) == []
    assert ledger.missing_objects(result, deep=True) == [lost]
    ledger.report_damage(lost, None, manifest.index)  # whoever read it has told it: now every plan knows
    assert ledger.missing_objects(result) == [lost]
    page = ledger.index_objects(manifest)[-1]
    ledger.store.delete([page])
    assert ledger.missing_objects(result) == sorted([lost, page])
    assert manifest.index
    ledger.store.delete([manifest.index.object])
    assert ledger.missing_objects(result) == sorted([lost, manifest.index.object])


def test_a_reference_finds_the_files_at_its_producer_which_is_read_once(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = ledger.acquire(KEY, "one")
    rows = tuple(files(3))
    manifest = ArtifactManifest(type="Documents", digest=artifact_digest("Documents", {}, rows), facets={}, files=rows)
    port, result = "documents", result_with().model_copy(update={"outputs": {"documents": manifest}})
    ledger.publish(result, lease)
    slim = manifest.reference()
    assert (slim.files, slim.count, slim.size) == ((), manifest.count, manifest.size)
    assert slim.reference() == slim
    ref = InputRef(node=result.node, key=result.key, port=port, manifest=slim)
    asked, read, seen = list[str](), ledger.manifest, {}
    monkeypatch.setattr(ledger, "manifest", lambda key: (asked.append(key), read(key))[1])
    assert [ledger.input_entries(one, seen) for one in (ref, ref)] == [list(manifest.files)] * 2
    assert asked == [result.key]
    with pytest.raises(TypeError, match="its producer's manifest"):
        ledger.entries(slim)
    other = ref.model_copy(update={"manifest": slim.model_copy(update={"digest": "0" * 64})})
    with pytest.raises(InputError, match="was made anew, with other bytes"):
        ledger.input_entries(other)
    with pytest.raises(InputError, match="is gone since this was planned"):
        ledger.input_entries(ref.model_copy(update={"key": "3" * 64}))


def test_a_request_is_small_whatever_its_inputs_hold(ledger: Ledger) -> None:
    root = write_index(ledger.store, "objects/many", files(5000))
    manifest = ArtifactManifest(type="Documents", digest="0" * 64, facets={}, index=root)
    ref = InputRef(node="a", key="1" * 64, port="documents", manifest=manifest.reference())
    assert len(ref.model_dump_json()) < 1000
    assert len(ledger.input_entries(ref)) == 5000


def test_a_manifest_of_before_there_were_indexes_is_read(ledger: Ledger) -> None:
    rows = files(200)
    old = {
        "type": "Documents", "digest": artifact_digest("Documents", {}, rows), "facets": {}, "meta": {},
        "files": [{"path": f.path, "size": f.size, "sha256": f.sha256, "object": f.object} for f in rows],
    }  # fmt: skip
    manifest = ArtifactManifest.model_validate(old)
    assert ledger.entries(manifest) == rows
    assert (manifest.count, manifest.size) == (200, sum(range(200)))
