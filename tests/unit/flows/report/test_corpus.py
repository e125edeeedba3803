"""The section of tokens: what the tokenizer makes of each source."""

from __future__ import annotations

from typing import Any

from flows.report import corpus


def shards(name: str, *encoded: dict[str, Any]) -> dict[str, Any]:
    stats = {"windows": 3, "tokens": 384, "sources": [], "encoded": list(encoded)} if encoded else {"windows": 3}
    return {"name": name, "stage": "tokenize", "result": {"stats": stats, "config": {"sequence_length": 128}}}


def test_bytes_a_token_are_told_of_each_source_over_all_shards() -> None:
    web = {"node": "web", "documents": 10, "bytes": 4_000, "tokens": 1_000}
    code = {"node": "code", "documents": 1, "bytes": 900, "tokens": 400}
    section = corpus.tokens({"nodes": [shards("short", web, code), shards("long", web | {"bytes": 5_000})]})
    assert section is not None
    table = section.body.partition("Bytes a token")[2]
    rows = [row.partition("</tr>")[0] for row in table.split("<tr>")[1:3]]
    assert [
        all(word in row for word in words)
        for row, words in zip(rows, (("web", "20", "2,000", "4.500"), ("code", "400", "2.250")), strict=True)
    ] == [True, True]


def test_shards_of_before_have_no_such_counts() -> None:
    section = corpus.tokens({"nodes": [shards("short")]})
    assert section is not None
    assert "Bytes a token" not in section.body
