"""Lists of files and WARCs over HTTP, from a site on loopback that is busy, moves, breaks off and loses files: what
comes is what the site holds, and what does not come is never called damage of the data.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from stages.collect import run as collect
from stages.collect.spec import CollectConfig
from stages.core.artifacts import RawFiles
from stages.core.errors import InfraError, InputError
from stages.core.testing import LocalContext, local_artifact
from stages.ingest import run as ingest
from stages.ingest.probe import open_one
from stages.ingest.spec import IngestConfig
from stages.lib.data.raw_source import RawSource
from stages.lib.formats import remote
from stages.lib.formats.documents import read_documents
from stages.lib.formats.sources import read_listing
from tests.support.loopback_hub import Hub, Repository, SiteFile, jsonl
from tests.support.raw_pages import page

COMMIT = "c" * 40
ROWS = jsonl([{"text": f"The text number {n} is long enough to be kept by every rule there is."} for n in range(400)])


def warc(first: int) -> bytes:
    """Twenty pages, each packed by itself, as Common Crawl's."""
    return b"".join(gzip.compress(page(number), mtime=0) for number in range(first, first + 20))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(remote, "PAUSES", (0.0,) * 6)
    monkeypatch.setenv("NO_PROXY", "*")
    with Hub({"a/b": Repository(COMMIT, {"data/rows.jsonl": ROWS}, cut=2)}) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        server.files = {f"crawl/{n}.warc.gz": SiteFile(warc(100 * n)) for n in range(3)}
        lines = "".join(f"s3://crawl/{n}.warc.gz\n" for n in range(3))
        server.files["pool.txt"] = SiteFile(lines.encode(), moved=True, busy=1, broken=1, cut=1)
        yield server


def listing(hub: Hub, root: Path, **changes: Any) -> LocalContext[CollectConfig]:
    """`collect` of a list over HTTP whose addresses are rewritten, as DCLM's."""
    pool = RawSource(
        uri=f"{hub.site}/pool.txt",
        listed=True,
        sha256=hashlib.sha256(hub.files["pool.txt"].data).hexdigest(),
        rewrite={"s3://crawl/": f"{hub.site}/crawl/"},
        format="warc",
        source="crawl",
    ).model_copy(update=changes)
    one = RawSource(uri=f"hf://a/b@{COMMIT}/data/rows.jsonl", format="jsonl", source="rows")
    config = CollectConfig(origin="listing", text=(one,), web=(pool,), code=(one,))
    ctx: LocalContext[Any] = LocalContext(root, config, {}, node="collect")
    collect.run(ctx)
    return ctx


def ingested(raw: LocalContext[CollectConfig], port: str, root: Path) -> list[dict[str, Any]]:
    inputs = {"raw": [local_artifact(RawFiles, raw.output(port))]}
    ctx: LocalContext[Any] = LocalContext(root, IngestConfig(workers=1), inputs, node=f"ingest_{port}")
    ingest.run(ctx)
    return list(read_documents(ctx.output("documents")))


def test_a_moved_busy_list_and_warcs_that_break_off_come_whole(hub: Hub, tmp_path: Path) -> None:
    clean = ingested(listing(hub, tmp_path / "a"), "web", tmp_path / "b")
    assert len(clean) == 60
    assert [one.busy + one.broken + one.cut for one in hub.files.values()] == [0] * 4
    first, second, third = (hub.files[f"crawl/{n}.warc.gz"] for n in range(3))
    first.moved, first.cut, second.busy, second.cut, third.broken = True, 2, 2, 1, 2
    asked = len(first.asked)
    assert ingested(listing(hub, tmp_path / "c"), "web", tmp_path / "d") == clean
    assert [one.busy + one.broken + one.cut for one in hub.files.values()] == [0] * 4, "and all of it happened"
    assert [line for line in first.asked[asked:] if "bytes=" in line], "taken up where it broke, not from its beginning"


def test_a_file_of_the_hub_that_breaks_off_is_taken_up_and_is_what_the_hub_promised(hub: Hub, tmp_path: Path) -> None:
    rows = ingested(listing(hub, tmp_path / "a"), "text", tmp_path / "b")
    assert len(rows) == 400
    assert hub.repositories["a/b"].cut == 0
    assert hub.strange == []


def test_a_site_that_stays_away_is_no_damage_and_a_file_that_is_gone_is_named(hub: Hub, tmp_path: Path) -> None:
    lines = "".join(f"{hub.site}/crawl/{n}.warc.gz\n" for n in range(3))  # one address each: no mirror that may be away
    hub.files["pool.txt"] = SiteFile(lines.encode())
    raw = listing(hub, tmp_path / "a", rewrite={})
    hub.files["crawl/1.warc.gz"].broken = 10_000
    with pytest.raises(InfraError, match=r"crawl/1\.warc\.gz cannot be read.*the server answers 503") as away:
        ingested(raw, "web", tmp_path / "b")
    assert "damage" not in str(away.value)
    hub.files["crawl/1.warc.gz"].broken, hub.files["crawl/1.warc.gz"].cut = 0, 10_000
    with pytest.raises(InfraError, match=r"crawl/1\.warc\.gz cannot be read"):  # too few bytes, or a reset: as it comes
        ingested(raw, "web", tmp_path / "c")
    del hub.files["crawl/1.warc.gz"]
    with pytest.raises(InputError, match=r"crawl/1\.warc\.gz is not there \(the server answers 404\)"):
        ingested(raw, "web", tmp_path / "d")


def test_a_list_that_stays_away_or_is_gone_is_told_by_its_setting(hub: Hub, tmp_path: Path) -> None:
    assert [file.uri for file in read_listing(listing(hub, tmp_path / "a").output("web"))] == [
        f"{hub.site}/crawl/{n}.warc.gz" for n in range(3)
    ]
    hub.files["pool.txt"].busy = 10_000
    with pytest.raises(InfraError, match=r"collect\.web\.0: raw file .*/pool\.txt cannot be read.*answers 429"):
        listing(hub, tmp_path / "b")
    del hub.files["pool.txt"]
    pool = RawSource(uri=f"{hub.site}/pool.txt", listed=True, format="warc", source="crawl")
    with pytest.raises(InputError, match=r"the list: raw file .*/pool\.txt is not there \(the server answers 404\)"):
        open_one({"source": pool.model_dump(mode="json"), "config": IngestConfig().model_dump(mode="json")})
