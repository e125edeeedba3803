"""The files of an artifact as a tree of pages in the store: a manifest names the root, whatever the artifact holds.

    root = write_index(store, "objects/dedup/<key>/000001/.index/documents", files)
    files = read_index(store, root)

A page is JSON: up to `ROWS` files, or up to `ROWS` references to pages. Its digest covers what the files are (path,
size, SHA-256 of each), not where they lie; that of a page of pages covers their digests. Which files stand on a page
follows from their order alone: equal contents have equal digests.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from stages.core.artifacts import INLINE_FILES, ArtifactManifest, FileEntry, IndexRef
from stages.core.keys import artifact_digest, canonical_json, sha256
from stages.core.store import Store, in_threads
from stages.core.store_errors import Damaged

ROWS = 1000
"""Rows of a page: one of 1,000 files is 300 kB to 1 MB, and a million files are a thousand pages under one root."""


class Page(BaseModel):
    """A page: files, or references to pages."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    files: tuple[FileEntry, ...] = ()
    pages: tuple[IndexRef, ...] = ()

    def digest(self) -> str:
        """Of what it stands for: see the module."""
        if self.pages:
            return sha256(canonical_json({"pages": [[page.digest, page.files, page.bytes] for page in self.pages]}))
        return sha256(canonical_json({"files": [[file.path, file.size, file.sha256] for file in self.files]}))


def index_digest(files: Sequence[FileEntry]) -> str:
    """The digest of the index of these files, without a store."""
    return list(_levels("", files))[-1][0][1].digest()


def write_index(store: Store, prefix: str, files: Sequence[FileEntry]) -> IndexRef:
    """Write the pages of an artifact under `prefix/`; returns the root. Raises InfraError.

    files: in path order, no path twice.
    """
    pages: list[tuple[str, Page]] = []
    for pages in _levels(prefix, files):
        in_threads(lambda page: store.put(page[0], _stored(page[1])), pages, store.interrupted)
    return _reference(*pages[0])


def artifact_manifest(store: Store, prefix: str, files: Sequence[FileEntry], **about: Any) -> ArtifactManifest:
    """The manifest of an output whose files are stored, in path order; of many it has an index under `prefix/`. about:
    its type, facets and meta.
    """
    kind, facets = about["type"], about["facets"]
    if len(files) <= INLINE_FILES:
        return ArtifactManifest(digest=artifact_digest(kind, facets, files), files=tuple(files), **about)
    root = write_index(store, prefix, files)
    return ArtifactManifest(digest=artifact_digest(kind, facets, index=root.digest), index=root, **about)


def _stored(page: Page) -> bytes:
    return page.model_dump_json(exclude_defaults=True).encode()


def _levels(prefix: str, files: Sequence[FileEntry]) -> Iterator[list[tuple[str, Page]]]:
    """The pages of each level with their names, from the files up to the root."""
    rows: Sequence[FileEntry] | Sequence[IndexRef] = files
    for level in itertools.count():
        cuts = [rows[start : start + ROWS] for start in range(0, max(1, len(rows)), ROWS)]
        pages = [(f"{prefix}/{level}-{number:06d}.json", _page(cut)) for number, cut in enumerate(cuts)]
        yield pages
        if len(pages) == 1:
            return
        rows = [_reference(*page) for page in pages]


def _page(rows: Sequence[FileEntry] | Sequence[IndexRef]) -> Page:
    if rows and isinstance(rows[0], IndexRef):
        return Page(pages=tuple(rows))  # type: ignore[arg-type]
    return Page(files=tuple(rows))  # type: ignore[arg-type]


def _reference(name: str, page: Page) -> IndexRef:
    return IndexRef(
        object=name,
        digest=page.digest(),
        files=len(page.files) + sum(child.files for child in page.pages),
        bytes=sum(file.size for file in page.files) + sum(child.bytes for child in page.pages),
        pages=1 + sum(child.pages for child in page.pages),
    )


def read_index(store: Store, root: IndexRef) -> list[FileEntry]:
    """All files of an artifact, in path order. Raises Damaged when a page is lost or is not what its reference says."""
    return [file for page in _leaves(store, root) for file in page.files]


def index_objects(store: Store, root: IndexRef) -> list[str]:
    """The names of all pages. Raises Damaged."""
    names, level = [root.object], [root]
    while level := [child for page in _read(store, [ref for ref in level if ref.pages > 1]) for child in page.pages]:
        names += [child.object for child in level]
    return names


def _leaves(store: Store, root: IndexRef) -> list[Page]:
    level = [root]
    while True:
        pages = _read(store, level)
        level = [child for page in pages for child in page.pages]
        if not level:
            return pages


def _read(store: Store, references: Iterable[IndexRef]) -> list[Page]:
    """Pages of one level, in order; several at once."""
    level = list(references)
    if len(level) <= 1:
        return [_read_one(store, reference) for reference in level]
    return in_threads(lambda reference: _read_one(store, reference), level, store.interrupted)


def _read_one(store: Store, reference: IndexRef) -> Page:
    stored = store.get(reference.object)
    if stored is None:
        raise Damaged(f"{store.where(reference.object)}, a page of an index, is not in the store", reference.object)
    try:
        page = Page.model_validate_json(stored[0])
    except ValidationError:
        page = None
    if page is None or page.digest() != reference.digest:
        where = store.where(reference.object)
        raise Damaged(f"{where} is not the page that was written there", reference.object, sha256(stored[0]))
    return page
