"""Bad input through the real command line: one clear line that names object and place, a status, nothing half
published.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from stages.core.ledger import Ledger
from stages.core.store import Store
from tests.support.installation import ROOT, Installation, sets
from tests.support.limits import DAG, HANG

pytestmark = pytest.mark.e2e

GOOD = [json.dumps({"text": f"A sentence of document {number}, long enough to be kept."}) for number in range(6)]
PAGE = (
    b"<html><body><main><p>"
    + b"A paragraph with enough words to count as the main text of a page. " * 20
    + b"</p></main></body></html>"
)


def warc(pages: int) -> bytes:
    """A WARC of equal pages, each record a gzip member of its own."""
    http = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n" + PAGE
    head = (
        "WARC/1.1\r\nWARC-Type: response\r\nWARC-Target-URI: https://example.org/{n}\r\nWARC-Date:"
        " 2024-01-01T00:00:00Z\r\nWARC-Record-ID: <urn:uuid:00000000-0000-0000-0000-{n:012d}>\r\nContent-Type:"
        " application/http; msgtype=response\r\nContent-Length: {size}\r\n\r\n"
    )
    return b"".join(gzip.compress(head.format(n=n, size=len(http)).encode() + http + b"\r\n\r\n") for n in range(pages))


def sources(folder: Path, text: bytes, web: bytes = b"", code: bytes = b"x = 1\n" * 40) -> dict[str, Any]:
    """Overrides that make the three kinds of raw source these files. A table goes as TOML, which JSON of text is
    not.
    """
    files = {
        "text": ("bad.jsonl", "jsonl", text),
        "web": ("bad.warc.gz", "warc", web or warc(3)),
        "code": ("bad.py", "code", code),
    }
    values: dict[str, Any] = {"collect.origin": "listing"}
    for port, (name, format, data) in files.items():
        (folder / name).write_bytes(data)
        values[f"collect.{port}"] = [{"uri": (folder / name).as_uri(), "format": format, "source": port}]
    return values


def ledger(installation: Installation) -> Ledger:
    from flows.settings import Settings

    settings = Settings.load(installation.home)
    with mock.patch.dict(os.environ, settings.store_environment()):  # other tests have a store of their own
        return Ledger(Store(settings.store))


def run(installation: Installation, *arguments: str) -> tuple[int, dict[str, Any]]:
    """`moxin run --json`: status, and what it printed."""
    process = installation.start("run", *arguments, "--json")
    out, err = process.communicate(timeout=DAG)
    assert "Traceback" not in out + err
    return process.returncode, json.loads(out)


def failed_lines(installation: Installation, folder: Path, *data: bytes) -> dict[str, str]:
    """Ingest three bad sources in one run; each node's message. Nothing of them is published, and the run ends with
    1.
    """
    values = sets(sources(folder, *data))
    status, found = run(installation, "--select", "collect,ingest", *values)
    assert status == 1
    assert not found["ok"]
    rows = {row["name"]: row for row in found["nodes"] if row["state"] == "failed"}
    plan = installation.json("plan", "--select", ",".join(rows), *values)["nodes"]
    assert {node["name"]: node["state"] for node in plan} == dict.fromkeys(rows, "run")
    assert [ledger(installation).manifest(node["key"]) for node in plan] == [None] * len(rows)
    for row in rows.values():
        assert "\n" not in row["message"]
        assert row["message"] in found["message"]
    return {name: row["message"] for name, row in rows.items()}


def test_sources_that_cannot_be_used_name_file_and_place(installation: Installation, tmp_path: Path) -> None:
    """Lines that are not JSON or lack the field; a WARC cut in its first record; a file that is not UTF-8."""
    lines = b'{"text": "fine, and long enough"}\n{"text": \n{"body": "no text"}\n[1]\n'
    messages = failed_lines(installation, tmp_path, lines, warc(1)[:-300], b"x = '\xff\xfe'\n")
    assert set(messages) == {"ingest_text", "ingest_web", "ingest_code"}
    assert "3 of 4" in messages["ingest_text"]
    assert "bad.jsonl:2" in messages["ingest_text"]
    assert "bad.warc.gz" in messages["ingest_web"]
    assert "truncated" in messages["ingest_web"]
    assert "bad.py" in messages["ingest_code"]
    assert "UTF-8" in messages["ingest_code"]


def test_an_empty_corpus_is_refused(installation: Installation, tmp_path: Path) -> None:
    messages = failed_lines(installation, tmp_path, b"", gzip.compress(b""), b"")
    assert set(messages) == {"ingest_text", "ingest_web", "ingest_code"}
    for name, file in {"ingest_text": "bad.jsonl", "ingest_web": "bad.warc.gz", "ingest_code": "bad.py"}.items():
        assert "no usable document" in messages[name]
        assert file in messages[name]


def test_a_few_bad_records_are_counted_and_the_rest_is_kept(installation: Installation, tmp_path: Path) -> None:
    """One line of 50 MB, one that is not JSON, one without the field, one that is not UTF-8; a WARC cut in its last
    record.
    """
    lines = [
        *(line.encode() for line in GOOD),
        b'{"text": "' + b"x" * 50_000_000 + b'"}',
        b"{",
        b'{"body": 1}',
        b'{"text": "\xff"}',
    ]
    values = sets(
        sources(tmp_path, b"\n".join(lines) + b"\n", warc(3)[:-300]) | {"ingest_text.max_record_bytes": 10_000_000}
    )
    status, found = run(installation, "--select", "collect,ingest", *values)
    assert status == 0, found
    shown = installation.json("show", "ingest_text")
    assert shown["stats"]["documents"] == 6
    assert sum(shown["stats"]["skipped"].values()) == 4
    assert installation.json("show", "ingest_web")["stats"]["documents"] == 2
    log = installation.moxin("logs", "ingest_text")
    assert "bad.jsonl:7" in log
    assert "bad.jsonl:8" in log


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--set", "dedup_text.treshold=0.7"], "dedup_text.treshold: no such setting; did you mean 'threshold'?"),
        (
            ["--set", "dedup_txt.threshold=0.7"],
            "--set 'dedup_txt.threshold=0.7': no node 'dedup_txt'; did you mean 'dedup_text'?",
        ),
        (["--select", "pretrain_4"], "no node or stage 'pretrain_4'"),
        (["--profile", "tiney"], "no profile 'tiney'; did you mean 'tiny'?"),
    ],
)
def test_a_mistake_in_a_command_is_one_line_and_status_2(tmp_path: Path, arguments: list[str], line: str) -> None:
    """Found before anything is started: the state folder stays empty."""
    error = Installation(tmp_path / "home").moxin("run", *arguments, status=2)
    assert line in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "home").exists()


def test_a_store_that_cannot_be_reached_is_named(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: nobody else answers there
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
        here = Installation(tmp_path / "home")
        env = here.env | {"MOXIN_S3_ENDPOINT": endpoint, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
        done = subprocess.run(
            [sys.executable, "-m", "flows.cli", "plan"],
            cwd=ROOT,
            env=env,
            capture_output=True,
            text=True,
            check=False,
            timeout=HANG,
        )
    assert done.returncode == 1
    *waiting, last = done.stderr.strip().splitlines()
    line = f"the object store at {endpoint} cannot be reached (EndpointConnectionError): is it up? try 'moxin up'"
    assert last == f"error: {line}"
    assert all(re.fullmatch(rf"{re.escape(line)}; asking again, for \d+ s more", row) for row in waiting)


def test_a_full_disk_ends_the_node_with_its_folder(installation: Installation, tmp_path: Path) -> None:
    """/dev/full answers every write as a full disk does; it stands where the log of the attempt goes."""
    values = [*sets(sources(tmp_path, "\n".join(GOOD).encode())), "--set", "patience=0"]
    key = installation.json("plan", "--select", "collect", *values)["nodes"][0]["key"]
    log = installation.home / "logs" / "stages" / key / "000001.jsonl"
    log.parent.mkdir(parents=True)
    log.symlink_to("/dev/full")
    status, found = run(installation, "--select", "collect", *values)
    assert status == 1
    assert f"no space left on the disk that holds {log.parent} (mounted at " in found["message"]
    assert "bytes free): free some, or point the folder elsewhere" in found["message"]
    published = ledger(installation).manifest(
        key
    )  # the stage itself had room: it may have finished before it was stopped
    assert published is None or not ledger(installation).missing_objects(published[0])
    log.unlink()
    status, found = run(installation, "--select", "collect", *values)
    assert status == 0, found
