"""Artifact types and manifests."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from stages.core.artifacts import (
    SHARED_FACETS,
    Artifact,
    ArtifactManifest,
    Documents,
    FileEntry,
    Model,
    Tokenizer,
    TokenShards,
)

SHA = "a" * 64


def entry(path: str, size: int = 1) -> FileEntry:
    return FileEntry(path=path, size=size, sha256=SHA, object=f"objects/{path}")


def test_every_type_is_found_by_its_name() -> None:
    assert Artifact.registry["Documents"] is Documents
    assert {"RawFiles", "Tokenizer", "TokenShards", "Model", "EvalSuite", "EvalReport"} <= Artifact.registry.keys()
    assert all(kind.__name__ == name for name, kind in Artifact.registry.items())


def test_what_a_tokenizer_decides_travels_with_shards_and_models() -> None:
    for kind in (Tokenizer, TokenShards, Model):
        assert {"tokenizer_digest", "vocab_size"} <= kind.facets
    assert {"tokenizer_digest", "vocab_size"} <= set(SHARED_FACETS)
    assert "sequence_length" not in SHARED_FACETS, "phases of different context lengths meet in one node"


def test_a_manifest_counts_its_bytes() -> None:
    manifest = ArtifactManifest(type="Documents", digest=SHA, facets={}, files=(entry("a", 3), entry("b", 4)))
    assert manifest.size == 7


@pytest.mark.parametrize("wrong", [{"sha256": "A" * 64}, {"sha256": "a" * 63}, {"size": -1}, {"extra": 1}])
def test_a_damaged_entry_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        FileEntry.model_validate({"path": "x", "size": 1, "sha256": SHA, "object": "o"} | wrong)


def test_facets_are_text_or_whole_numbers() -> None:
    with pytest.raises(ValidationError):
        ArtifactManifest.model_validate({"type": "Model", "digest": SHA, "facets": {"dtype": 1.5}, "files": []})


def test_a_manifest_survives_json() -> None:
    manifest = ArtifactManifest(
        type="Model", digest=SHA, facets={"vocab_size": 7}, meta={"n": [1, None]}, files=(entry("é"),)
    )
    assert ArtifactManifest.model_validate_json(manifest.model_dump_json()) == manifest
