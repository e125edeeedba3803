"""Run `collect`: write the listing, or this machine's material as JSON lines, Parquet, WARC and source files."""

from __future__ import annotations

import gzip
import hashlib
import json
import uuid
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from stages.collect import local_documents, synthetic_pages
from stages.collect.spec import CollectConfig
from stages.core.context import Context
from stages.core.errors import ConfigError
from stages.lib.data.source_lists import expanded
from stages.lib.formats.sources import RawFile, write_listing

WARC_DATE = "2024-01-01T00:00:00Z"
"""A fixed date: the same material must give the same bytes."""


def run(ctx: Context[CollectConfig]) -> None:
    """Write the three `RawFiles` artifacts."""
    if ctx.config.origin == "machine":
        _from_machine(ctx)
        return
    ports = (("text", ctx.config.text), ("web", ctx.config.web), ("code", ctx.config.code))
    for port, rows in ports:
        if not rows:
            raise ConfigError(
                f"{ctx.node}.{port} is empty: list at least one file, or set {ctx.node}.origin = 'machine'"
            )
        for row in rows:
            if "://" not in row.uri:
                raise ConfigError(
                    f"{ctx.node}.{port}: '{row.uri}' is no address: write file:///.., s3://.., https://.. or hf://.."
                )
    for port, rows in ports:
        files = [file for number, row in enumerate(rows) for file in expanded(row, f"{ctx.node}.{port}.{number}")]
        write_listing(ctx.output(port), files)
        ctx.describe(port, meta={"files": len(files)})
        ctx.stat(**{f"{port}_files": len(files)})


def _from_machine(ctx: Context[CollectConfig]) -> None:
    config = ctx.config
    prose = list(local_documents.prose(config.text_bytes, config.seed))
    ctx.progress(1, 3, "sources")
    text = ctx.output("text")
    half = len(prose) // 2
    _write_jsonl(text / "prose-00000.jsonl.zst", prose[:half])
    _write_parquet(text / "prose-00001.parquet", prose[half:])
    write_listing(
        text,
        [
            RawFile(uri="prose-00000.jsonl.zst", format="jsonl", source="prose"),
            RawFile(uri="prose-00001.parquet", format="parquet", source="prose"),
        ],
    )
    web = ctx.output("web")
    pages = _write_warc(
        web / "pages-00000.warc.gz", synthetic_pages.pages(config.web_bytes, config.mirrored, config.seed)
    )
    ctx.progress(2, 3, "sources")
    write_listing(web, [RawFile(uri="pages-00000.warc.gz", format="warc", source="toy-web")])
    code = ctx.output("code")
    rows = []
    for module in local_documents.sources(config.code_bytes, config.seed):
        path = code / "code" / (module.url.partition(":")[2].replace(".", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(module.path.read_bytes())
        rows.append(
            RawFile(uri=path.relative_to(code).as_posix(), format="code", source="code", license=module.license)
        )
    write_listing(code, rows)
    ctx.progress(3, 3, "sources")
    ctx.stat(
        python=local_documents.python_version(),
        text_documents=len(prose),
        web_pages=pages,
        code_files=len(rows),
        text_bytes=sum(len(t.text.encode()) for t in prose),
    )


def _write_jsonl(path: Path, texts: Iterable[local_documents.Text]) -> None:
    with open(path, "wb") as raw, zstandard.ZstdCompressor(level=3, write_checksum=True).stream_writer(raw) as stream:
        for text in texts:
            row = {"text": text.text, "url": text.url, "license": text.license}
            stream.write(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n")


def _write_parquet(path: Path, texts: list[local_documents.Text]) -> None:
    columns = {
        "text": [t.text.encode("utf-8", "replace").decode() for t in texts],
        "url": [t.url for t in texts],
        "license": [t.license for t in texts],
    }
    pq.write_table(pa.table(columns), path, compression="zstd")


def _write_warc(path: Path, pages: Iterable[synthetic_pages.Page]) -> int:
    """Write pages as WARC/1.1 response records, one gzip member each, as crawlers do; returns how many."""
    count = 0
    with open(path, "wb") as stream:
        for page in pages:
            body = page.html.encode("utf-8", "replace")
            http = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: %d\r\n\r\n" % len(
                body
            )
            block = http + body
            head = (
                "WARC/1.1\r\nWARC-Type: response\r\n"
                f"WARC-Record-ID: <urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, page.url)}>\r\n"
                f"WARC-Target-URI: {page.url}\r\nWARC-Date: {WARC_DATE}\r\n"
                f"WARC-Block-Digest: sha256:{hashlib.sha256(block).hexdigest()}\r\n"
                f"Content-Type: application/http; msgtype=response\r\nContent-Length: {len(block)}\r\n\r\n"
            ).encode()
            stream.write(gzip.compress(head + block + b"\r\n\r\n", 6, mtime=0))
            count += 1
    return count
