"""A page's text: its characters told, its depth bounded, its main text taken out. Runs in the process of `guard`."""

from __future__ import annotations

import codecs
import re

MAX_DEPTH = 2_000
"""Elements within one another. Browsers stop at 512 (Blink); here the time that extraction takes grows with the square
of it: 0.3 s at 4,000, 36 s at 16,000.
"""
MAX_WORK = 50_000_000
"""Depth summed over all elements: extraction takes some 40 ns for each (1.7 s for 20,000 elements 2,000 deep)."""
MAX_OPTIONS, MAX_ATTRIBUTES = 20_000, 10_000
"""Options of a page, attributes of an element: parsing takes time with the square of either (1 s and 0.15 s for so
many).
"""
LONG = 20_000
"""Characters between two '<' from which on attributes are counted."""

CHARSETS = re.compile(
    r"utf-8$|ascii$|cp\d+$|iso8859|iso2022_[jk]|koi8|mac-|gb|hz$|big5|euc_|shift_jis|johab$|tis-620$|kz1048$|ptcp154$"
)
"""Python's codecs that pages are written in: not UTF-7, not base64; and a page of UTF-16 that had no mark could not say
so.
"""
_META = re.compile(rb"<meta[^>]{0,512}?charset\s{0,8}=\s{0,8}[\"']?\s{0,8}([A-Za-z0-9_:.\-]{2,40})", re.IGNORECASE)
_XML = re.compile(rb"^\s{0,100}<\?xml[^>]{0,200}?encoding\s{0,8}=\s{0,8}[\"']([A-Za-z0-9_.\-]{2,40})")
_HEADER = re.compile(r"charset\s{0,8}=\s{0,8}[\"']?\s{0,8}([A-Za-z0-9_:.\-]{2,40})", re.IGNORECASE)
PRESCAN = 4096
"""Bytes in which a page says what its characters are (browsers look at 1,024)."""
GUESSED = 1 << 16
"""Bytes by which they are guessed, where all else failed."""
FEW = 0.002
"""Share of characters that may be broken in a page which says that it is UTF-8: cut strings, a stray byte."""
WIDER = {
    "iso8859-1": "cp1252",
    "ascii": "cp1252",
    "iso8859-9": "cp1254",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
    "big5": "big5hkscs",
    "iso8859-11": "cp874",
    "tis-620": "cp874",
}
"""What browsers read under a name (WHATWG Encoding): supersets that servers send under the old one."""


def text_of(body: bytes, content_type: str) -> str:
    """The characters of a page: by its mark, as UTF-8 where it is that, by its HTTP header, by its own word, by what
    they look like.
    """
    from stages.lib.formats.compression import mark

    size, encoding = mark(body[:4])
    if size:
        return body[size:].decode(encoding, "replace")
    declared = [name for name in (_codec(n) for n in _declared(body, content_type)) if name]
    if not (
        declared and declared[0].startswith("iso2022") and b"\x1b" in body
    ):  # seven bits, which UTF-8 would take as it is
        try:
            return body.decode("utf-8")
        except UnicodeDecodeError:
            pass
    for name in declared:
        text = body.decode(name, "replace")
        if text.count("\ufffd") <= FEW * len(text):
            return text
    return _detected(body)


def _declared(body: bytes, content_type: str) -> list[str]:
    head = body[:PRESCAN]
    of_header = [match[1] for match in (_HEADER.search(content_type),) if match]
    return of_header + [match[1].decode("ascii") for match in (_META.search(head), _XML.search(head)) if match]


def _codec(name: str) -> str | None:
    from resiliparse.parse.encoding import map_encoding_to_html5

    for known in (name, map_encoding_to_html5(name, fallback_utf8=False) or ""):
        try:
            codec = codecs.lookup(known).name
        except (LookupError, ValueError):
            continue
        if CHARSETS.match(codec):
            return WIDER.get(codec, codec)
    return None


def _detected(body: bytes) -> str:
    from resiliparse.parse.encoding import bytes_to_str, detect_encoding

    guess = detect_encoding(body) or "utf-8"
    if guess == "utf-8":  # which it is not: so it takes EUC-KR
        from charset_normalizer import from_bytes

        best = from_bytes(body[:GUESSED]).best()
        guess = best.encoding if best is not None else guess
    return bytes_to_str(body, guess)


_TAG = re.compile(
    r"<!--.*?(?:-->|\Z)|<(script|style|textarea|xmp|title)\b.*?(?:</\1|\Z)|<(/?)([a-z][^\s/<>]*)[^<>]*>?",
    re.IGNORECASE | re.DOTALL,
)
_VOID = "area base br col embed hr img input link meta param source track wbr basefont bgsound frame keygen"
_ENDED = "p li dd dt option tr td th tbody thead tfoot colgroup caption html head body a"
CLOSED = frozenset(f"{_VOID} {_ENDED}".split())
"""Elements that have no content, or that the next one of their kind ends: without another element they cannot lie in
one another.
"""
_QUOTED, _ATTRIBUTE = re.compile("\"[^\"]*\"|'[^']*'"), re.compile(r"[\s/]+[^\s/=]")
SHAPES = frozenset(
    (
        "path",
        "g",
        "circle",
        "ellipse",
        "line",
        "polygon",
        "polyline",
        "rect",
        "use",
        "stop",
        "image",
        "animate",
        "set",
        "mspace",
    )
)
"""Elements of SVG and MathML, where '/>' ends one; in HTML it ends none."""


def too_much(html: str) -> str:
    """Why a page would hold up the others; '' for one that does not. Linear, and a few counts for most pages.

    What gets around it is ended by the guard."""
    longest, tags, deep = _measured(html)
    if longest > LONG and any(
        _attributes(piece) > MAX_ATTRIBUTES for piece in html.split("<") if len(piece) > LONG // 4
    ):
        return "too many attributes"
    if not deep and tags <= MAX_OPTIONS:
        return ""
    depth = work = options = 0
    foreign = False
    for match in _TAG.finditer(html):
        name = match[3] and match[3].lower()
        if name is None:
            continue
        if name in CLOSED:
            work += depth
            options += name == "option" and not match[2]
        elif match[2]:
            depth = max(0, depth - 1)
        elif not (foreign and name in SHAPES and match[0].endswith("/>")):
            depth, work = depth + 1, work + depth
        foreign = not match[2] if name in ("svg", "math") else foreign
        if depth > MAX_DEPTH or work > MAX_WORK:
            return "too deep"
    return "too many options" if options > MAX_OPTIONS else ""


def _measured(html: str) -> tuple[int, int, bool]:
    """(bytes between two '<' at most, tags, whether elements may lie too deep: counted as if every tag had an end).
    Quick.
    """
    import numpy as np

    data = np.frombuffer(html.encode("utf-8", "replace") + b" ", np.uint8)
    places = np.flatnonzero(data[:-1] == ord("<"))
    longest = int(np.diff(places, prepend=0, append=len(data)).max())
    if len(places) <= MAX_DEPTH:
        return longest, len(places), False
    after = data[places + 1]
    letters = after | 32  # ASCII capitals as small letters
    depth = np.cumsum(((letters >= ord("a")) & (letters <= ord("z"))).astype(np.int64) - (after == ord("/")))
    depth -= np.minimum.accumulate(np.minimum(depth, 0))
    return longest, len(places), bool(depth.max() > MAX_DEPTH or depth.sum() > MAX_WORK)


def _attributes(piece: str) -> int:
    """How many attributes a tag has, about: what lies up to its '>', quoted values taken out."""
    tag = _QUOTED.sub("", piece.partition(">")[0])
    return len(_ATTRIBUTE.findall(tag))


def page(body: bytes, content_type: str, main_content: bool) -> tuple[str, str]:
    """(text, '') of a page, or ('', the reason why there is none)."""
    from resiliparse.extract.html2text import extract_plain_text

    html = text_of(body, content_type)
    if reason := too_much(html):
        return "", reason
    text = extract_plain_text(html, main_content=main_content)
    return (text, "") if text.strip() else ("", "no main text")
