"""Whoever owns a bucket or a repository of the hub chooses the names in it: none leads out of the folder that it is
fetched to.
"""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest

from stages.core.errors import InputError
from stages.lib.outside import places
from tests.support.hostile_names import HOSTILE

OF_THE_STORE = [name for name in HOSTILE if name and not name.endswith("/")]
"""A key that ends in a slash is a folder to S3's tools, and none of a listing."""


class Remote(io.BytesIO):
    """An object's bytes, as they are read."""

    promise = SimpleNamespace(size=5)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys of a bucket below `models/`; each holds five bytes."""
    keys: list[str] = []
    monkeypatch.setattr(places, "object_uris", lambda place: [f"s3://bucket/models/{key}" for key in keys])
    monkeypatch.setattr(places, "S3", lambda uri: uri)
    monkeypatch.setattr(places, "RemoteFile", lambda source, uri: Remote(b"bytes"))
    return keys


@pytest.mark.parametrize("name", OF_THE_STORE)
def test_a_key_that_leads_out_is_refused_before_anything_is_written(
    bucket: list[str], tmp_path: Path, name: str
) -> None:
    bucket += [name]
    with pytest.raises(InputError, match="s3://bucket/models holds a file that no folder may hold"):
        places.fetched("s3://bucket/models", tmp_path / "work", list)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_an_ordinary_key_is_fetched_to_its_place(bucket: list[str], tmp_path: Path) -> None:
    bucket += ["config.json", "deep/größe.json"]
    place = places.fetched("s3://bucket/models", tmp_path, list)
    assert sorted(path.relative_to(place.folder).as_posix() for path in place.folder.rglob("*.json")) == bucket


@pytest.mark.parametrize("name", [name for name in HOSTILE if name])
def test_a_name_of_the_hub_that_leads_out_is_never_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    listed: Any = SimpleNamespace(sha="c" * 40, siblings=[SimpleNamespace(rfilename=name)])
    asked: list[str] = []
    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", lambda *_, **__: listed)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *words, **_: asked.append(words[1]))
    with pytest.raises(InputError, match="hf://owner/name holds a file that no folder may hold"):
        places.fetched("hf://owner/name", tmp_path, list)
    assert asked == []
