"""What lies in an image, layer by layer: no credential of whoever built it, in any spelling."""

from __future__ import annotations

import gzip
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows import images
from tests.support.planted import CONTROL_PLANE, SOURCES, held, secrets_in

pytestmark = [pytest.mark.slow, pytest.mark.container]
INDEXES = {
    "PIP_INDEX_URL": "http://me:planted-of-the-index@127.0.0.1:9/simple",
    "PIP_EXTRA_INDEX_URL": "http://me:planted-of-another-index@127.0.0.1:9/simple",
}


def parts(image: Any, folder: Path) -> Iterator[tuple[str, bytes]]:
    """What the daemon gives of an image: its layers, unpacked, its settings and history."""
    path = folder / "image.tar"
    with open(path, "wb") as stream:
        for chunk in image.save():
            stream.write(chunk)
    with tarfile.open(path) as archive:
        for member in archive:
            if (opened := archive.extractfile(member)) is not None:
                data = opened.read()
                yield member.name, gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    yield "history", json.dumps([image.attrs, image.history()]).encode()


def test_no_credential_of_who_builds_is_in_a_layer(
    docker_client: Any, built: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the stage's image, built anew with everything planted, and of the environment's below it."""
    (image,) = built("collect")
    given = SOURCES | CONTROL_PLANE | INDEXES
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    images.build_stages(docker_client, [image], print, rebuild=True)
    secrets, there = secrets_in(given), {"source": "class StageRequest", "setting": "MOXIN_SCRATCH=/scratch"}
    seen, size = set[str](), 0
    for name, data in parts(docker_client.images.get(image.reference), tmp_path):
        assert held(data, secrets) == [], name
        seen, size = seen | set(held(data, there)), size + len(data)
    assert seen == set(there), "the search finds what surely lies there"
    assert size > 50 << 20, "the environment is among them"
