"""The corpus: what came in, what was dropped and why, tokenizer and shards, capability data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flows.report.data import Data, NodeData, nodes_of
from flows.report.markup import (
    MISSING,
    NONE,
    Markup,
    Section,
    bar,
    code,
    details,
    heading,
    items,
    join,
    number,
    paragraph,
    percent,
    size,
    table,
)

PARTIAL = ("paragraphs", "repeated substrings")
"""A reason that begins so cut something out of documents that stay: its documents are not gone."""

ENCODED = ("documents", "bytes", "tokens")
"""What `tokenize` counts of each source."""


def funnels(data: Data) -> Section | None:
    """Documents and bytes from raw source to corpus."""
    nodes = list(nodes_of(data, "ingest", "dedup", "quality"))
    if not any(node["stage"] in ("ingest", "dedup", "quality") for node in data["nodes"]):
        return None
    overview = table(
        ("Node", "Documents in", "Documents out", "Text in", "Text out", "Kept, of the bytes", ""),
        [_flow(data, node) for node in nodes],
        numbers=range(1, 6),
    )
    ratio = next((node["result"]["stats"].get("bytes_per_token") for node in nodes_of(data, "tokenizer")), None)
    parts = [part for node in nodes for part in _detail(node, ratio)]
    lost = [n["name"] for n in data["nodes"] if n["stage"] in ("ingest", "dedup", "quality") and not n["result"]]
    warning = paragraph(f"Missing: {', '.join(lost)}.", "warning") if lost else None
    return Section(
        "corpus", "Corpus: what stays, what goes, and why", join(warning, overview if nodes else None, *parts)
    )


def _flow(data: Data, node: NodeData) -> list[Any]:
    stats = node["result"]["stats"]
    documents, text = _incoming(data, node)
    share = stats["text_bytes"] / text if text and "text_bytes" in stats else None
    return [
        Markup('<a href="#node-{0}">{0}</a>').format(node["name"]),
        number(documents) if documents is not None else NONE,
        number(stats.get("documents")),
        size(text) if text is not None else NONE,
        size(stats.get("text_bytes")),
        percent(share, 1) if share is not None else NONE,
        bar(share) if share is not None else "",
    ]


def _incoming(data: Data, node: NodeData) -> tuple[int | None, int | None]:
    """Documents and bytes of text that came in, where the node says so."""
    stats = node["result"]["stats"]
    if "funnel" in stats:
        return stats["funnel"]["in"]["documents"], stats["funnel"]["in"]["bytes"]
    if node["stage"] == "ingest":
        return stats.get("records"), None
    metas = [ref["manifest"]["meta"] for ref in node["result"]["inputs"].get("documents", ())]
    return stats.get("scored"), (
        sum(meta["text_bytes"] for meta in metas) if metas and all("text_bytes" in m for m in metas) else None
    )


def _detail(node: NodeData, ratio: float | None) -> list[Markup]:
    """A node's own tables. `ratio`: bytes a token, of this run's tokenizer."""
    stats = node["result"]["stats"]
    if node["stage"] == "ingest":
        return _ingest(node["name"], stats, ratio)
    return _dedup(node["name"], stats, ratio) if node["stage"] == "dedup" else _quality(node["name"], stats)


def _tokens(text: Any, ratio: float | None) -> Markup | str:
    """How many tokens so many bytes are, about."""
    return number(round(text / ratio)) if ratio and isinstance(text, int) else NONE


def _ingest(name: str, stats: Mapping[str, Any], ratio: float | None) -> list[Markup]:
    skipped: dict[str, Any] = stats.get("skipped") or {}
    dropped: dict[str, Any] = stats.get("dropped") or {}
    records = stats.get("records")
    rows: list[list[Any]] = [
        [reason, number(count), percent(count, records), NONE, NONE] for reason, count in skipped.items()
    ]
    for rule, row in dropped.items():
        rows.append(
            [
                f"rule: {rule}",
                number(row["documents"]),
                percent(row["documents"], records),
                size(row["bytes"]),
                _tokens(row["bytes"], ratio),
            ]
        )
    lost = (
        [table(("Reason", "Records", "Of all records", "Text", "Tokens, about"), rows, numbers=range(1, 5))]
        if rows
        else []
    )
    languages: dict[str, int] = stats.get("languages") or {}
    rows_of_languages = [
        [code(language), number(count), bar(count / max(languages.values()))] for language, count in languages.items()
    ]
    guess = (
        [
            details(
                "Languages, guessed of every eighth document",
                table(("Language", "Documents", ""), rows_of_languages, numbers=(1,)),
            )
        ]
        if rows_of_languages
        else []
    )
    shown = [*lost, *guess, *_lengths(stats, "characters")]
    return [heading(f"{name}: records passed over" if rows else name), *shown] if shown else []


def _lengths(stats: Mapping[str, Any], unit: str) -> list[Markup]:
    """Histogram of the documents' lengths, each class twice the one before."""
    classes = stats.get("lengths")
    if not classes:
        return []
    most = max(row["documents"] for row in classes)
    rows = [[number(row["from"]), number(row["documents"]), bar(row["documents"] / most)] for row in classes]
    return [details("Lengths", table((f"From ({unit})", "Documents", ""), rows, numbers=(0, 1)))]


def _dedup(name: str, stats: Mapping[str, Any], ratio: float | None) -> list[Markup]:
    funnel = stats.get("funnel")
    if not funnel:
        return [heading(name), paragraph(Markup("Funnel: %s.") % MISSING)]
    whole = funnel["in"]
    rows: list[list[Any]] = []
    for reason, row in [
        ("in", funnel["in"]),
        *((k, v) for k, v in funnel.items() if k not in ("in", "out")),
        ("out", funnel["out"]),
    ]:
        label = {"in": "in", "out": "kept"}.get(
            reason, f"{reason}{' (cut from documents that stay)' if reason.startswith(PARTIAL) else ''}"
        )
        kind = reason if reason in ("in", "out") else "cut"
        rows.append([
            label, number(row["documents"]), percent(row["documents"], whole["documents"]), size(row["bytes"]),
            percent(row["bytes"], whole["bytes"]),
            _tokens(row["bytes"], ratio), bar(row["bytes"] / whole["bytes"] if whole["bytes"] else 0.0, kind),
        ])  # fmt: skip
    body = table(
        ("", "Documents", "Share", "Text", "Share", "Tokens, about", "Of the bytes"), rows, numbers=range(1, 6)
    )
    return [
        heading(f"{name}: recipe {stats.get('recipe', 'unknown')}"),
        body,
        _clusters(stats),
        *_lengths(stats, "bytes"),
    ]


def _clusters(stats: Mapping[str, Any]) -> Markup:
    counts: dict[str, int] = stats.get("cluster_sizes") or {}
    sizes = ", ".join(f"{count} of {members}" for members, count in counts.items())
    text = f"{number(stats.get('clusters'))} clusters of near duplicates" + (f" ({sizes} documents)" if sizes else "")
    examples = stats.get("example_clusters")
    if not examples:
        return paragraph(text + ".", "note")
    rows = [Markup(" = ").join(code(member) for member in cluster) for cluster in examples]
    return details(f"{text}; examples", items(rows))


def _quality(name: str, stats: Mapping[str, Any]) -> list[Markup]:
    histogram: list[dict[str, Any]] = stats.get("histogram") or []
    most = max((row["documents"] for row in histogram), default=0)
    rows = [
        [
            f"{row['from']:.1f} to {row['from'] + 0.1:.1f}",
            number(row["documents"]),
            bar(row["documents"] / most if most else 0),
        ]
        for row in histogram
    ]
    threshold = stats.get("threshold")
    text = Markup(
        "Kept %s of %s documents, those that score at least %s. The classifier was right on %s of %s documents that it"
        " had not seen."
    ) % (
        number(stats.get("documents")),
        number(stats.get("scored")),
        number(threshold, 4),
        percent(stats.get("test_accuracy"), 1),
        number(stats.get("test_documents")),
    )
    return [
        heading(f"{name}: fastText classifier"),
        paragraph(text),
        details("Distribution of the scores", table(("Score", "Documents", ""), rows, numbers=(1,))),
    ]


def capability(data: Data) -> Section | None:
    """Benchmark questions for phase 3, and what was taken out because the test split has it."""
    nodes = list(nodes_of(data, "capability"))
    if not nodes:
        return None
    parts: list[Markup] = []
    for node in nodes:
        stats = node["result"]["stats"]
        names = list(dict.fromkeys([*stats.get("train_questions", {}), *stats.get("test_questions", {})]))
        rows: list[list[Any]] = []
        for name in names:
            removed = stats.get("removed", {}).get(name, {})
            shares = ", ".join(f"{count:,} {reason}" for reason, count in removed.items() if count) or NONE
            rows.append(
                [
                    name,
                    number(stats.get("train_questions", {}).get(name, 0)),
                    number(stats.get("test_questions", {}).get(name, 0)),
                    shares,
                ]
            )
        origin = node["result"]["outputs"].get("suite", {}).get("meta", {}).get("origin")
        origin_text = (
            "made from this run's own documents in the benchmarks' schemas, so no score on them is a score on the"
            " benchmark"
            if origin == "machine"
            else f"origin: {origin or 'unknown'}"
        )
        left = Markup("Training rows that still share a 13-gram with a test row: %s. The questions are %s.") % (
            number(stats.get("train_test_overlap")),
            origin_text,
        )
        parts += [
            table(("Benchmark", "Training questions", "Test questions", "Removed from training"), rows, numbers=(1, 2)),
            paragraph(left, "note"),
        ]
    return Section("capability", "Capability data (phase 3)", join(*parts))


def tokens(data: Data) -> Section | None:
    """The tokenizer, and the packed shards by source."""
    tokenizers, shards = list(nodes_of(data, "tokenizer")), list(nodes_of(data, "tokenize"))
    if not tokenizers and not shards:
        return None
    parts: list[Markup] = []
    for node in tokenizers:
        stats = node["result"]["stats"]
        text = Markup("%s: %s pieces (%s), %s bytes a token on %s documents.") % (
            Markup("<strong>%s</strong>") % node["name"], number(stats.get("vocab_size")),
            {"train": "trained on this corpus"}.get(stats.get("origin"), f"origin: {stats.get('origin')}"),
            number(stats.get("bytes_per_token"), 3), number(stats.get("sampled_documents")),
        )  # fmt: skip
        parts.append(paragraph(text))
    if shards:
        head = (
            "Shards",
            "Source",
            "Context",
            "Windows",
            "Held-out windows",
            "Documents",
            "Tokens",
            "Share",
            "Epochs of the source",
        )
        rows = [row for node in shards for row in _shards(node)]
        parts.append(table(head, rows, numbers=range(2, 9)))
        parts += [_phases(shards), *_fertility(shards), *(part for node in shards for part in _mixture(node))]
    return Section("tokens", "Tokenizer and token shards", join(*parts))


def _fertility(nodes: list[NodeData]) -> list[Markup]:
    """Bytes a token of each source, over all shards: what the tokenizer is good at, and what it is not."""
    counts: dict[str, list[int]] = {}
    for node in nodes:
        for row in node["result"]["stats"].get("encoded", ()):
            one = counts.setdefault(row["node"], [0, 0, 0])
            counts[row["node"]] = [have + row[what] for have, what in zip(one, ENCODED, strict=True)]
    if not counts:
        return []
    rows = [
        [name, number(documents), size(text), number(tokens), number(text / tokens, 3) if tokens else NONE]
        for name, (documents, text, tokens) in counts.items()
    ]
    head = ("Source", "Documents", "Text", "Tokens, without ends", "Bytes a token")
    about = "Fertility: what was encoded of each source, before the mixture cuts or repeats it."
    return [paragraph(about, "note"), table(head, rows, numbers=range(1, 5))]


def _phases(nodes: list[NodeData]) -> Markup:
    """How often each source is read over all phases."""
    epochs: dict[str, float] = {}
    for node in nodes:
        for source in node["result"]["stats"].get("sources", ()):
            epochs[source["node"]] = epochs.get(source["node"], 0.0) + source.get("of_the_whole", source["epochs"])
    text = ", ".join(f"{name} {number(count, 2)}" for name, count in epochs.items())
    return paragraph(f"Epochs of each source over all phases, by its bytes: {text}.", "note")


def _shards(node: NodeData) -> list[list[Any]]:
    stats, config = node["result"]["stats"], node["result"]["config"]
    first = [
        node["name"],
        "all",
        number(config.get("sequence_length")),
        number(stats.get("windows")),
        number(stats.get("heldout_windows")),
    ]
    rows = [[Markup("<strong>%s</strong>") % first[0], *first[1:], NONE, number(stats.get("tokens")), "100.0 %", NONE]]
    total = sum(source["tokens"] for source in stats.get("sources", ()))
    for source in stats.get("sources", ()):
        rows.append(
            [
                "",
                source["node"],
                "",
                "",
                "",
                number(source["documents"]),
                number(source["tokens"]),
                percent(source["tokens"], total),
                number(source["epochs"], 2),
            ]
        )
    return rows


def _mixture(node: NodeData) -> list[Markup]:
    """What the mixture held out, cut and repeated, in documents, bytes and tokens."""
    funnel = node["result"]["stats"].get("funnel")
    if not funnel:
        return []
    rows = [
        [
            reason,
            *(
                count(row[what]) if what in row else NONE
                for what, count in (("documents", number), ("bytes", size), ("tokens", number))
            ),
        ]
        for reason, row in funnel.items()
    ]
    return [
        details(
            f"{node['name']}: held out, cut, repeated",
            table(("", "Documents", "Text", "Tokens"), rows, numbers=range(1, 4)),
        )
    ]


def summary(data: Data) -> list[str]:
    """One line a deduplication and a filter."""
    lines: list[str] = []
    for node in nodes_of(data, "dedup", "quality"):
        documents, text = _incoming(data, node)
        stats = node["result"]["stats"]
        kept = percent(stats.get("text_bytes"), text)
        lines.append(
            f"{node['name']}: {number(stats.get('documents'))} of {number(documents)} documents, {kept} of the bytes"
        )
    return lines
