"""Pages of an archive: their characters, their packed bodies, and bounds that no page gets around."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from pathlib import Path

import brotli
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from stages.ingest.html_text import MAX_ATTRIBUTES, MAX_DEPTH, MAX_OPTIONS, text_of, too_much
from stages.ingest.http_body import CUT, LONG, Undecodable, decoded
from stages.ingest.readers import READERS, Bad, Record
from stages.ingest.spec import IngestConfig
from stages.lib.formats.sources import RawFile

# --- characters -------------------------------------------------------------------------------------------------------

SAMPLES = {
    "utf-8": "Größe, naïve, 中文, Ελληνικά, русский",
    "windows-1252": "“Smart quotes” – naïve café costs 5 €",
    "iso-8859-1": "Über größere Häuser, déjà vu à côté",
    "iso-8859-2": "Zażółć gęślą jaźń, příliš žluťoučký kůň",
    "iso-8859-5": "Съешь же ещё этих мягких французских булок",
    "iso-8859-15": "Cœur brisé pour 5 € à Žilina",
    "windows-1251": "Съешь же ещё этих мягких «французских» булок — да",
    "shift_jis": "いろはにほへと ちりぬるを 日本語の文章です",
    "euc-jp": "いろはにほへと ちりぬるを 日本語の文章です",
    "gb18030": "天地玄黄,宇宙洪荒。日月盈昃,辰宿列张。𠀀",
    "gbk": "天地玄黄,宇宙洪荒。日月盈昃,辰宿列张。",
    "big5": "天地玄黃,宇宙洪荒。日月盈昃,辰宿列張。",
    "euc-kr": "나랏말싸미 듕귁에 달아 한국어 문장입니다",
    "koi8-r": "Съешь же ещё этих мягких французских булок",
}
PYTHON = {"windows-1252": "cp1252", "windows-1251": "cp1251"}


def encoded(name: str, before: str = "") -> bytes:
    return f"<html><head>{before}<title>t</title></head><body><p>{SAMPLES[name]}</p></body></html>".encode(
        PYTHON.get(name, name)
    )


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize(
    ("header", "meta"),
    [
        ("text/html; charset={}", ""),
        ('text/html; Charset="{}" ; x=y', ""),
        ("text/html", "<meta charset={}>"),
        ("text/html", '<META http-equiv="Content-Type" content="text/html; charset={}">'),
        ("text/html", "<?xml version='1.0' encoding='{}'?>"),
        ("text/html; charset=no-such-thing", '<meta charset="{}"/>'),
        ("text/html; charset=utf-8", '<meta charset="{}"/>'),  # a server's default that is not true
    ],
)
def test_a_page_says_what_its_characters_are(name: str, header: str, meta: str) -> None:
    body = encoded(name, meta.format(name))
    if meta.startswith("<?xml"):
        body = meta.format(name).encode() + encoded(name)
    assert SAMPLES[name] in text_of(body, header.format(name))


CITIES = {
    "windows-1251": "Москва является столицей Российской Федерации и крупнейшим городом страны. ",
    "koi8-r": "Москва является столицей Российской Федерации и крупнейшим городом страны. ",
    "iso-8859-5": "Москва является столицей Российской Федерации и крупнейшим городом страны. ",
    "shift_jis": "日本語の文章です。東京は日本の首都です。",
    "euc-jp": "日本語の文章です。東京は日本の首都です。",
    "gb18030": "北京是中华人民共和国的首都,也是全国的政治中心。",
    "big5": "臺北市是一座有歷史的城市,也是文化中心。",
    "euc-kr": "서울은 대한민국의 수도이다. 오늘 날씨가 매우 좋습니다. ",
    "windows-1252": "Die größte Stadt liegt an der Küste – naïve “quotes” über den Häusern. ",
}


@pytest.mark.parametrize("name", CITIES)
def test_without_a_word_its_characters_are_guessed(name: str) -> None:
    text = f"<html><body><p>{CITIES[name] * 20}</p></body></html>"
    assert text_of(text.encode(PYTHON.get(name, name)), "text/html") == text


@pytest.mark.parametrize(
    ("body", "header", "text"),
    [
        ("größe".encode(), "text/html; charset=iso-8859-1", "größe"),  # UTF-8 under the server's default
        ("größe".encode("utf-8-sig"), "text/html; charset=windows-1251", "größe"),
        ("größe 中".encode("utf-16"), "text/html; charset=utf-8", "größe 中"),
        (b"it\x92s \x93so\x94", "text/html; charset=iso-8859-1", "it’s “so”"),  # what browsers read as iso-8859-1
        ("日本".encode("iso-2022-jp"), "text/html; charset=iso-2022-jp", "日本"),
        (
            ("größe " * 500).encode() + b"\xc3",
            "text/html; charset=utf-8",
            "größe " * 500 + "\ufffd",
        ),  # cut in a character
        (b"plain", "text/html; charset=utf-7", "plain"),
        (b"cGxhaW4=", "text/html; charset=base64", "cGxhaW4="),
        (b"", "", ""),
    ],
)
def test_characters_by_what_is_there(body: bytes, header: str, text: str) -> None:
    assert text_of(body, header) == text


# --- bodies -----------------------------------------------------------------------------------------------------------

HTML = b"<!DOCTYPE html><html><body>" + b"<p>Some words of a page.</p>" * 300 + b"</body></html>"


def chunked(data: bytes, size: int = 100, end: bytes = b"0\r\n\r\n") -> bytes:
    pieces = [data[n : n + size] for n in range(0, len(data), size)]
    return b"".join(b"%x;name=value\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + end


def raw_deflate(data: bytes) -> bytes:
    machine = zlib.compressobj(wbits=-15)
    return machine.compress(data) + machine.flush()


CODINGS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "gzip": (gzip.compress, "gzip"),
    "x-gzip": (gzip.compress, "x-gzip"),
    "two members": (lambda data: gzip.compress(data[:50]) + gzip.compress(data[50:]), "GZIP"),
    "deflate": (zlib.compress, "deflate"),
    "raw deflate": (raw_deflate, "deflate"),
    "br": (brotli.compress, "br"),
    "zstd": (zstandard.compress, "zstd"),
    "twice": (lambda data: brotli.compress(gzip.compress(data)), "gzip, br"),
    "identity": (bytes, "identity"),
    "none": (bytes, ""),
}


@pytest.mark.parametrize("transfer", [False, True])
@pytest.mark.parametrize(("pack", "coding"), CODINGS.values(), ids=CODINGS)
def test_every_coding(pack: Callable[[bytes], bytes], coding: str, transfer: bool) -> None:
    body = pack(HTML)
    assert decoded(chunked(body) if transfer else body, coding, "chunked" if transfer else "", 1 << 20) == HTML
    assert (
        decoded(HTML, coding, "chunked" if transfer else "", 1 << 20) == HTML
    )  # a crawler that stored the page and kept the headers
    with pytest.raises(Undecodable, match=LONG):
        decoded(chunked(body) if transfer else body, coding, "chunked" if transfer else "", len(HTML) - 1)


@pytest.mark.parametrize("name", ["gzip", "deflate", "raw deflate", "br", "zstd"])
def test_a_body_that_is_cut_or_changed_is_counted(name: str) -> None:
    pack, coding = CODINGS[name]
    body = pack(bytes(range(256)) * 30)
    for changed in (body[: len(body) // 2], body[:-1], b"\xff\xfe\xfd" + body[3:]):
        with pytest.raises(Undecodable, match=CUT):
            decoded(changed, coding, "", 1 << 20)
    with pytest.raises(Undecodable, match=CUT):
        decoded(chunked(HTML)[:-400], "", "chunked", 1 << 20)
    with pytest.raises(Undecodable, match="unknown HTTP encoding"):
        decoded(body, "compress", "", 1 << 20)


@pytest.mark.parametrize("name", ["gzip", "deflate", "raw deflate", "br", "zstd"])
def test_a_bomb_ends_at_the_bound(name: str) -> None:
    pack, coding = CODINGS[name]
    with pytest.raises(Undecodable, match=LONG):
        decoded(pack(bytes(8_000_000)), coding, "", 1 << 20)


@given(
    st.binary(max_size=200),
    st.sampled_from(["gzip", "deflate", "br", "zstd", "gzip, gzip", "x"]),
    st.sampled_from(["", "chunked"]),
)
def test_any_bytes_are_a_body_or_counted(data: bytes, coding: str, transfer: str) -> None:
    reason = ""
    try:
        assert len(decoded(data, coding, transfer, 10_000)) <= 10_000
    except Undecodable as error:
        reason = str(error)
    assert reason in ("", CUT, LONG, "unknown HTTP encoding")


# --- depth ------------------------------------------------------------------------------------------------------------


DEEP = [
    "<div>",
    "<ul><li>x",
    "<dl><dd>",
    "<table><tr><td>",
    "<font color=1>",
    "<DIV\nclass='a>b'>",
    "<x:y>",
    "<path/>",
    "<svg></svg><path/>",
    "<optgroup><option>",
    "<rt>",
]


@pytest.mark.parametrize("opened", DEEP)
def test_what_lies_too_deep(opened: str) -> None:
    assert too_much(opened * (MAX_DEPTH + 1)) == "too deep"
    assert too_much(opened * 20) == ""


@pytest.mark.parametrize(
    "many",
    [
        "<p>a",
        "<br>",
        "<li>a",
        "<td>a",
        "<a href=x>a</a>",
        "<div><b>x</b></div>",
        "<img src='a'/>",
        "<!-- <div> -->",
        "<script>'<div>'</script>",
        "<a name=x>",
        "<option>",
    ],
)
def test_what_is_many_but_not_deep(many: str) -> None:
    assert too_much(many * 10_000) == ""
    assert too_much("<svg>" + "<path d='M0'/>" * 10_000 + "</svg>") == ""


def test_what_takes_time_with_its_square() -> None:
    """Each took half a minute or more of resiliparse's time for 2 MB."""
    assert too_much("<div>" * 1_900 + "<p>x</p>" * 50_000) == "too deep"
    assert too_much("<select>" + "<Option>x" * (MAX_OPTIONS + 1)) == "too many options"
    assert too_much("<p " + " ".join(f"a{n}=1" for n in range(MAX_ATTRIBUTES + 2)) + ">x") == "too many attributes"
    assert too_much("<p " + "/".join(f"a{n}" for n in range(MAX_ATTRIBUTES + 2)) + ">x") == "too many attributes"
    assert too_much("<p data-json='" + "a b=1 " * 50_000 + "'>" + "words and = signs " * 50_000) == ""


# --- the archive ------------------------------------------------------------------------------------------------------


def answer(
    body: bytes, headers: str = "", number: int = 1, kind: str = "response", status: str = "HTTP/1.1 200 OK"
) -> bytes:
    block = f"{status}\r\nContent-Type: text/html\r\n{headers}\r\n".encode() + body
    head = (
        f"WARC/1.1\r\nWARC-Type: {kind}\r\nWARC-Record-ID:"
        f" <urn:uuid:00000000-0000-0000-0000-{number:012d}>\r\nWARC-Date: 2024-01-01T00:00:00Z\r\nWARC-Target-URI:"
        f" https://example.org/{number}\r\nContent-Type: application/http; msgtype=response\r\nContent-Length:"
        f" {len(block)}\r\n\r\n"
    )
    return head.encode() + block + b"\r\n\r\n"


def read(folder: Path, *records: bytes, **config: int) -> list[Record | Bad]:
    (folder / "a.warc").write_bytes(b"".join(records))
    return list(READERS["warc"](RawFile(uri="a.warc", format="warc", source="s"), folder, IngestConfig(**config)))


def test_pages_with_packed_bodies_and_records_without_pages_are_counted(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        answer(HTML),
        answer(gzip.compress(HTML), "Content-Encoding: gzip\r\n"),
        answer(chunked(brotli.compress(HTML)), "content-encoding: br\r\ntransfer-encoding: chunked\r\n"),
        answer(gzip.compress(HTML)[:-30], "Content-Encoding: gzip\r\n"),
        answer(HTML, "Content-Encoding: pack200-gzip\r\n"),
        answer(gzip.compress(HTML * 9), "Content-Encoding: gzip\r\n"),
        answer(b"", kind="revisit"),
        answer(HTML, kind="resource"),
        answer(HTML, kind="conversion"),
        answer(HTML, kind="request"),
        answer(HTML, status="HTTP/1.1 301 Moved"),
        answer(HTML, status="no HTTP at all"),
        answer(b"<div>" * 50_000 + HTML),
        answer(HTML),
        max_record_bytes=60_000,
    )
    texts = [r.text for r in found if isinstance(r, Record)]
    assert len(texts) == 4
    assert len(set(texts)) == 1
    reasons = [r.reason for r in found if isinstance(r, Bad)]
    assert reasons[:6] == [CUT, "unknown HTTP encoding", LONG, "revisit record", "resource record", "conversion record"]
    assert reasons[6:] == ["not status 200", "not status 200", "too long"]


def test_a_page_too_deep_costs_itself(tmp_path: Path) -> None:
    """36 s for 16,000 elements before there was a bound, and 50,000 did not end."""
    found = read(tmp_path, answer(HTML), answer(b"<html><body>" + b"<div>" * 50_000 + HTML), answer(HTML))
    assert [getattr(r, "reason", "a page") for r in found] == ["a page", "too deep", "a page"]
