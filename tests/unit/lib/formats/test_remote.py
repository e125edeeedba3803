"""`stages.lib.formats.remote`, its two ways and `raw_file`: what comes is held against what was promised, whoever
serves it and however it breaks.

A server on loopback with ranges, ETags and redirects breaks, lies and is busy as it is told. The clients are the real
ones.
"""

from __future__ import annotations

import email.utils
import hashlib
import http.server
import io
import json
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants

from stages.core.errors import InfraError, InputError
from stages.ingest.readers import READERS, Bad, Record
from stages.ingest.spec import IngestConfig
from stages.lib.data.hub_requests import call_hub
from stages.lib.formats import remote
from stages.lib.formats.raw_file import opened
from stages.lib.formats.remote import RemoteFile
from stages.lib.formats.remote_http import Http, HubFile
from stages.lib.formats.remote_s3 import S3
from stages.lib.formats.sources import RawFile
from stages.lib.formats.uris import named, shown
from tests.support.raw_pages import jsonl, page

DATA = b"".join(n.to_bytes(4, "big") for n in range(500_000))


@dataclass
class Site:
    """A server: files by path, and what it does instead of serving them whole."""

    files: dict[str, bytes] = field(default_factory=dict)
    cut: Callable[[int, int], int | None] = lambda number, start: None
    """(number of the request, offset) -> bytes after which the connection is closed."""
    ranges: bool = True
    headers: dict[str, str] = field(default_factory=dict)
    answer: Callable[[int, str], tuple[int, dict[str, str]] | None] = lambda number, path: None
    """(number of the request, path) -> a status and headers instead of the file."""
    seen: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    url: str = ""
    tag: str = '"one"'

    def source(self, path: str, **options: Any) -> Http:
        return Http(self.url + path, self.url + path, **options)

    def open(self, path: str, **options: Any) -> RemoteFile:
        return RemoteFile(self.source(path, **options), self.url + path)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: Site

    def do_GET(self) -> None:
        site, number = self.site, len(self.site.seen)
        site.seen.append((self.path, dict(self.headers)))
        told = site.answer(number, self.path)
        if told is not None:
            self.send_response(told[0])
            for name, value in ({"Content-Length": "0"} | told[1]).items():
                self.send_header(name, value)
            self.end_headers()
            return
        data = site.files.get(urllib.parse.unquote(self.path.partition("?")[0]))
        if data is None:
            self.send_error(404)
            return
        asked_for = self.headers.get("Range") if site.ranges else None
        start = int(asked_for.removeprefix("bytes=").rstrip("-")) if asked_for else 0
        self.send_response(206 if asked_for else 200)
        if asked_for:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        for name, value in ({"Content-Length": str(len(data) - start), "ETag": site.tag} | site.headers).items():
            self.send_header(name, value)
        self.end_headers()
        end = site.cut(number, start)
        with suppress(BrokenPipeError, ConnectionResetError):  # a reader that seeks goes away
            self.wfile.write(data[start:] if end is None else data[start:end])
        if end is not None:
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(remote, "PAUSES", (0.0,) * 6)
    monkeypatch.setenv("NO_PROXY", "*")
    found = Site()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"site": found}))
    found.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield found
    server.shutdown()
    server.server_close()


# --- breaks -----------------------------------------------------------------------------------------------------------


def test_a_body_that_breaks_is_taken_up_where_it_broke(site: Site) -> None:
    site.files["/a"] = DATA
    site.cut = lambda number, start: start + 300_001 if start + 300_001 < len(DATA) else None
    assert io.BufferedReader(site.open("/a")).read() == DATA
    starts = [headers.get("Range") for _, headers in site.seen]
    assert starts[:3] == [None, "bytes=300001-", "bytes=600002-"]


def test_a_server_without_ranges_is_read_again_up_to_there(site: Site) -> None:
    site.files["/a"], site.ranges = DATA, False
    site.cut = lambda number, start: 700_000 if number == 0 else None
    assert io.BufferedReader(site.open("/a")).read() == DATA
    assert len(site.seen) == 2


@pytest.mark.parametrize("ranges", [True, False])
def test_what_breaks_at_one_place_again_and_again_is_told_with_place_and_promise(site: Site, ranges: bool) -> None:
    site.files["/a"], site.ranges = DATA, ranges
    site.cut = lambda number, start: 700_000
    with pytest.raises(
        InfraError, match=rf"raw file {site.url}/a cannot be read: at byte 700000 of 2000000 promised, after 4 tries: "
    ):
        io.BufferedReader(site.open("/a")).read()


def test_seeking_reads_what_lies_there(site: Site) -> None:
    site.files["/a"] = DATA
    stream = io.BufferedReader(site.open("/a"), 1 << 12)
    for offset in (0, 1_999_996, 4, 800_000, 800_400, 1_000_000, 0):
        stream.seek(offset)
        assert stream.read(4) == DATA[offset : offset + 4]
    assert stream.seek(-4, 2) == len(DATA) - 4
    assert stream.read() == DATA[-4:]


def test_a_file_that_changes_underway_is_not_joined_of_two(site: Site) -> None:
    site.files["/a"] = DATA

    def cut(number: int, start: int) -> int | None:
        site.tag = '"two"'
        return 5_000 if number == 0 else None

    site.cut = cut
    with pytest.raises(
        InfraError, match='changed while it was read: 2000000 bytes with tag "one", then 2000000 with "two"'
    ):
        io.BufferedReader(site.open("/a")).read()


def test_an_answer_without_a_length_is_refused(site: Site) -> None:
    site.answer = lambda number, path: (200, {"Content-Length": "", "Connection": "close"})
    with pytest.raises(InputError, match="answers without a length"):
        site.open("/a")


def test_what_is_packed_for_the_way_is_unpacked_and_nothing_else_is_taken(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gzip

    body = jsonl({"text": "a"}, {"text": "b"})
    site.files = {"/a.jsonl": gzip.compress(body), "/a.jsonl.gz": gzip.compress(body)}
    monkeypatch.setattr("stages.lib.formats.raw_file.remote", lambda uri: site.open(urllib.parse.urlsplit(uri).path))
    site.headers = {"Content-Encoding": "gzip"}
    for name in ("a.jsonl", "a.jsonl.gz"):
        assert read(tmp_path, f"https://h/{name}") == [Record("a"), Record("b")]
    site.headers = {"Content-Encoding": "br"}
    with pytest.raises(InputError, match="the server packs it as br, although it was asked not to"):
        read(tmp_path, "https://h/a.jsonl")


# --- what servers say -------------------------------------------------------------------------------------------------


def test_a_busy_server_is_asked_again_after_as_long_as_it_says(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.setattr(remote, "PAUSES", (0.5, 1.0, 2.0, 4.0, 8.0, 16.0))
    site.files["/a"] = DATA
    later = email.utils.formatdate(time.time() + 50, usegmt=True)
    told = {
        0: (429, {"Retry-After": "7"}),
        1: (503, {}),
        2: (429, {"Retry-After": later}),
        3: (500, {}),
        4: (429, {"Retry-After": "9999"}),
    }
    site.answer = lambda number, path: told.get(number)
    assert io.BufferedReader(site.open("/a")).read() == DATA
    assert slept[0] == 7
    assert slept[1] == 1.0
    assert 30 < slept[2] <= 50
    assert slept[3:] == [4.0, remote.LONGEST_PAUSE]


@pytest.mark.parametrize(
    ("status", "error", "says"),
    [
        (404, InputError, r"is not there \(the server answers 404\)"),
        (410, InputError, r"is not there"),
        (401, InputError, r"is refused \(the server answers 401\): it needs credentials"),
        (
            403,
            InputError,
            r"is refused \(the server answers 403\): it needs credentials, or its presigned address has run out",
        ),
        (451, InputError, r"cannot be had: the server answers 451"),
        (500, InfraError, r"cannot be read: at byte 0, after 7 tries: the server answers 500"),
        (429, InfraError, r"cannot be read: at byte 0, after 7 tries: the server answers 429"),
    ],
)
def test_statuses(site: Site, status: int, error: type[Exception], says: str) -> None:
    site.answer = lambda number, path: (status, {})
    with pytest.raises(error, match=says) as caught:
        site.open("/a.jsonl?X-Amz-Signature=abc&sig=def")
    assert "abc" not in str(caught.value)
    assert "def" not in str(caught.value)


def test_a_port_where_nobody_listens_is_infrastructure(site: Site) -> None:
    with pytest.raises(InfraError, match="cannot be read: at byte 0, after 7 tries: NewConnectionError"):
        RemoteFile(
            Http("http://127.0.0.1:9/a?token=secret", "http://127.0.0.1:9/a?token=secret"),
            "http://127.0.0.1:9/a?token=secret",
        )


# --- the hub ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(site: Site, monkeypatch: pytest.MonkeyPatch) -> Site:
    """The hub's way to a large file: an answer with its size and SHA-256 that leads to another host."""
    monkeypatch.setattr(constants, "ENDPOINT", site.url)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    other = site.url.replace("127.0.0.1", "localhost")
    site.files["/blob"] = DATA
    promise = {
        "X-Linked-Size": str(len(DATA)),
        "X-Linked-ETag": f'"{hashlib.sha256(DATA).hexdigest()}"',
        "Location": f"{other}/blob?Signature=s3cr3t",
    }
    site.answer = lambda number, path: (302, promise) if path.startswith("/datasets/") else None
    return site


URI = "hf://owner/name@abc/data/a b.bin"


def hub_file(uri: str = URI) -> RemoteFile:
    return RemoteFile(HubFile.parse(uri).source(uri), uri)


def test_a_file_of_the_hub_comes_from_where_it_leads_without_the_token(hub: Site) -> None:
    hub.cut = lambda number, start: 900_000 if start == 0 else None
    assert io.BufferedReader(hub_file()).read() == DATA
    assert hub.seen[0][0] == "/datasets/owner/name/resolve/abc/data/a%20b.bin"
    assert [headers.get("Authorization") for _, headers in hub.seen] == ["Bearer hf_secret", None] * 2
    assert hub.seen[3][1]["Range"] == "bytes=900000-"


def test_other_bytes_than_the_hub_promised_are_noticed(hub: Site) -> None:
    hub.files["/blob"] = DATA[:-1] + b"x"
    with pytest.raises(InfraError, match="its 2000000 bytes have another SHA-256 than the"):
        io.BufferedReader(hub_file()).read()
    hub.files["/blob"] = DATA[:-1]
    with pytest.raises(InfraError, match="1999999 bytes are offered, 2000000 were promised"):
        hub_file()


def test_a_gated_data_set_names_the_remedy(hub: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.answer = lambda number, path: (403, {"X-Error-Code": "GatedRepo"})
    with pytest.raises(
        InputError,
        match=(
            "gated or private: ask for access on the page of the data set owner/name on the hub with the account of"
            " HF_TOKEN"
        ),
    ):
        hub_file()
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    hub.answer = lambda number, path: (401, {})
    with pytest.raises(
        InputError, match="accept its terms on the page of the data set owner/name on the hub, and set HF_TOKEN"
    ):
        hub_file()


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("hf://o/n/a.jsonl", "name a revision"),
        ("hf://o/n@abc", "no file of a data set"),
        ("hf://o/n/x@abc/f", "no file"),
    ],
)
def test_addresses_of_the_hub_that_are_none(uri: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        HubFile.parse(uri)


class _Answer:
    def __init__(self, status: int, headers: dict[str, str]) -> None:
        self.status_code, self.headers = status, headers


class _HubError(Exception):
    def __init__(self, status: int, **headers: str) -> None:
        super().__init__(f"{status} of the hub")
        self.response = _Answer(status, {name.replace("_", "-"): value for name, value in headers.items()})


def test_questions_to_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    told: list[Any] = [_HubError(429, Retry_After="3"), _HubError(503), ConnectionError("no route"), 5]

    def question() -> int:
        value = told.pop(0)
        if isinstance(value, Exception):
            raise value
        return value

    assert call_hub("hf://o/n@r", question) == 5
    assert slept == [3.0, 1.0, 2.0]
    for error, kind, says in (
        (_HubError(403), InputError, "is refused: _HubError: 403 of the hub; accept its terms"),
        (FileNotFoundError("Dataset 'o/n' is a gated dataset on the Hub."), InputError, "is refused: .* set HF_TOKEN"),
        (_HubError(404), InputError, "cannot be used: 404 of the hub"),
        (ConnectionError("no route"), InfraError, "cannot be read: ConnectionError: no route"),
    ):
        told[:] = [error] * 9
        with pytest.raises(kind, match=says):
            call_hub("hf://o/n@r", question)


# --- S3 and mirrors ---------------------------------------------------------------------------------------------------


def test_an_object_is_taken_up_where_it_broke(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "MOXIN_SOURCE_AWS_ACCESS_KEY_ID": "k",
        "MOXIN_SOURCE_AWS_SECRET_ACCESS_KEY": "s",
        "MOXIN_SOURCE_S3_ENDPOINT": site.url,
    }.items():
        monkeypatch.setenv(name, value)
    site.files["/bucket/a key?with #marks"] = DATA
    site.cut = lambda number, start: start + 900_000 if start < 1_000_000 else None
    uri = "s3://bucket/a key?with #marks"
    assert io.BufferedReader(RemoteFile(S3(uri), uri)).read() == DATA
    assert [headers.get("Range") for _, headers in site.seen] == [None, "bytes=900000-", "bytes=1800000-"]


def read(folder: Path, uri: str, format: str = "jsonl", mirrors: tuple[str, ...] = ()) -> list[Record | Bad]:
    file = RawFile.model_validate({"uri": uri, "format": format, "source": "s", "mirrors": mirrors})
    return list(READERS[format](file, folder, IngestConfig()))


@pytest.fixture
def addresses(site: Site, monkeypatch: pytest.MonkeyPatch) -> Site:
    """https:// addresses lead to the server on loopback."""
    monkeypatch.setattr(
        "stages.lib.formats.raw_file.remote", lambda uri: RemoteFile(site.source(uri.partition("//h")[2]), uri)
    )
    return site


def test_a_mirror_serves_what_the_address_does_not(addresses: Site, tmp_path: Path) -> None:
    addresses.files["/b.jsonl"] = jsonl({"text": "a"})
    assert read(tmp_path, "https://h/gone.jsonl", mirrors=("https://h/b.jsonl",)) == [Record("a")]
    file = RawFile(uri="https://h/gone.jsonl", format="jsonl", source="s", mirrors=("https://h/b.jsonl?sig=secret",))
    with opened(file, tmp_path) as raw:
        assert raw.uri == "https://h/b.jsonl?sig=secret"
    with pytest.raises(
        InputError,
        match=r"gone.jsonl is not there .*; raw file .*none.jsonl is not there .* \(2 addresses were tried\)",
    ):
        read(tmp_path, "https://h/gone.jsonl", mirrors=("https://h/none.jsonl",))


@pytest.mark.parametrize("kind", ["warc", "warc.gz", "jsonl", "jsonl.gz", "jsonl.zst", "parquet", "code"])
def test_a_break_is_damage_to_no_reader_and_lost_to_none_when_it_mends(
    addresses: Site, tmp_path: Path, kind: str
) -> None:
    """Broken at every fourth part: the same records as on disk. Broken for good: InfraError."""
    import gzip
    import random

    import zstandard

    rng = random.Random(0)
    texts = ["".join(rng.choices("abcdefghij klmnop", k=9000)) for _ in range(60)]
    pages = [page(n) + page(n + 100, size=80) for n in range(60)]
    packs: dict[str, Callable[[], bytes]] = {
        "warc": lambda: b"".join(pages),
        "warc.gz": lambda: b"".join(gzip.compress(p[:-4] + p[-4:]) for n in range(60) for p in (page(n),)),
        "jsonl": lambda: jsonl(*({"text": t} for t in texts)),
        "jsonl.gz": lambda: gzip.compress(jsonl(*({"text": t} for t in texts))),
        "jsonl.zst": lambda: zstandard.compress(jsonl(*({"text": t} for t in texts))),
        "code": lambda: jsonl(*({"text": t} for t in texts)),
    }
    format = kind.partition(".")[0]
    if kind == "parquet":
        pq.write_table(pa.table({"text": texts, "other": texts}), tmp_path / "a", row_group_size=20)
        data = (tmp_path / "a").read_bytes()
    else:
        data = packs[kind]()
        (tmp_path / f"a.{kind}").write_bytes(data)
    (tmp_path / f"a.{kind}").write_bytes(data)
    wanted = read(tmp_path, f"a.{kind}", format)
    addresses.files[f"/a.{kind}"] = data
    quarter = len(data) // 4
    addresses.cut = lambda number, start: start + quarter if start < 2 * quarter else None
    found = read(tmp_path, f"https://h/a.{kind}", format)
    assert [(type(r), getattr(r, "text", "")) for r in found] == [(type(r), getattr(r, "text", "")) for r in wanted]
    addresses.cut = lambda number, start: max(start, len(data) // 2)
    with pytest.raises(InfraError, match=r"raw file https://h/a\..* cannot be read: at byte \d+ of \d+ promised"):
        read(tmp_path, f"https://h/a.{kind}", format)


# --- addresses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "as_shown", "name"),
    [
        (
            "https://u:p@h/a%20b.jsonl.gz?X-Amz-Signature=1&X-Amz-Credential=2&part=3",
            "https://h/a%20b.jsonl.gz?part=3",
            "a b.jsonl.gz",
        ),
        ("https://h/a.parquet?sv=2024&se=1&sr=b&sp=r&sig=x%3D", "https://h/a.parquet", "a.parquet"),
        ("https://h/a.warc.gz?Expires=1&Signature=s&Key-Pair-Id=k", "https://h/a.warc.gz", "a.warc.gz"),
        ("https://h/a.jsonl?access_token=t&apikey=u#part", "https://h/a.jsonl", "a.jsonl"),
        ("https://h/a.jsonl?author=x&coauthors=y", "https://h/a.jsonl?author=x&coauthors=y", "a.jsonl"),
        ("https://h/a.jsonl?auth=1&x-auth=2&authorization=3&oauth_nonce=4&authkey=5", "https://h/a.jsonl", "a.jsonl"),
        ("hf://owner/name@abc/f.json?config=x", "hf://owner/name@abc/f.json?config=x", "f.json"),
        ("s3://b/k?with=marks #1.jsonl", "s3://b/k?with=marks #1.jsonl", "k?with=marks #1.jsonl"),
        ("folder/a b.jsonl", "folder/a b.jsonl", "a b.jsonl"),
        ("file:///a%20b.jsonl", "file:///a%20b.jsonl", "a b.jsonl"),
    ],
)
def test_what_is_secret_is_not_shown(uri: str, as_shown: str, name: str) -> None:
    assert shown(uri) == as_shown
    assert named(uri) == name


def test_a_presigned_address_stands_in_no_record(addresses: Site, tmp_path: Path) -> None:
    addresses.files = {"/a.jsonl": jsonl({"text": "a"}, [1]), "/a.py": b"x = 1\n"}
    found = [
        *read(tmp_path, "https://h/a.jsonl?X-Amz-Signature=abc"),
        *read(tmp_path, "https://h/a.py?sig=abc", "code"),
    ]
    assert "abc" not in repr(found)
    assert found[1:] == [Bad("not a JSON object", "https://h/a.jsonl:2"), Record("x = 1\n", "https://h/a.py")]
    assert json.loads(json.dumps(addresses.seen[0][0])) == "/a.jsonl?X-Amz-Signature=abc"
