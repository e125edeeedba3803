"""The card of a corpus: what it holds, what was left out and why, whose it is, and how it was made."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from flows.release import card
from flows.release.corpora import NOT_COUNTED, UNNAMED, Corpus, Output
from flows.release.lineage import flat, inputs
from stages.core.errors import ConfigError
from stages.core.keys import sha256
from stages.core.ledger import Ledger
from stages.core.messages import StageResult

SUITE = "suite.json"
"""Listing of an evaluation suite (stages.lib.formats.suites)."""
SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"),
         (10**8, "10M<n<100M"), (10**9, "100M<n<1B"), (10**10, "1B<n<10B"), (10**11, "10B<n<100B"),
         (10**12, "100B<n<1T"))  # fmt: skip
"""The hub's words for how many rows a data set has."""
KINDS = {
    "Documents": ("text", "text-generation"),
    "Conversations": ("instructions", "text-generation"),
    "Preferences": ("pairs of answers", "text-generation"),
    "Problems": ("problems with answers that can be checked", "text-generation"),
    "ImageConversations": ("conversations about images", "image-text-to-text"),
    "EvalSuite": ("evaluation data sets", None),
    "ImageSuite": ("evaluation data sets of images", None),
}
"""What people call each, and the hub's category of its task."""


def render(result: StageResult, corpus: Corpus, listings: Mapping[str, Mapping[str, Any]]) -> str:
    """README.md of a corpus. listings: `suite.json` of its suites, by port (`read_listings`)."""
    lines = [f"# {corpus.node}", "", _what(corpus), ""]
    if corpus.made_here:
        lines += [
            "> **Made by the run** on one machine, in the format of the real sets: it tests the machinery, and nothing"
            " measured on it stands for them.",
            "",
        ]
    lines += ["## What it holds", ""]
    rows = [
        (f"`{out.port}`", KINDS[out.type][0], _number(out.rows), _number(out.text_bytes), str(out.files),
         f"{out.size:,}", card.short(out.digest))
        for out in corpus.outputs
    ]  # fmt: skip
    head = ("output", "what", "rows", "bytes of text", "files", "bytes of files", "from")
    lines += [*card.table(head, rows, numbers=(2, 3, 4, 5)), ""]
    lines += [*_removed(corpus), "", *_shares(corpus, listings), "", *_settings(result), "", *_origin(result), ""]
    return f"---\n{_metadata(corpus, listings).to_yaml().strip()}\n---\n\n" + "\n".join(lines)


def _metadata(corpus: Corpus, listings: Mapping[str, Mapping[str, Any]]) -> Any:
    from huggingface_hub import DatasetCardData

    rows = sum(out.rows or 0 for out in corpus.outputs)
    licenses = {name.lower() for out in corpus.outputs for name in _licenses(out, listings.get(out.port)) or {}}
    simple = {name if " " not in name else "other" for name in licenses - {UNNAMED}}
    tasks = sorted({task for out in corpus.outputs if (task := KINDS[out.type][1])})
    return DatasetCardData(
        pretty_name=corpus.node,
        license=sorted(simple | ({"unknown"} if not licenses or UNNAMED in licenses else set())),
        size_categories=next((word for most, word in SIZES if rows < most), "n>1T") if rows else None,
        task_categories=tasks or None,
        annotations_creators="machine-generated" if corpus.made_here else None,
        source_data_sets=list(corpus.data_sets) or None,
        tags=["moxin", *(["toy-data"] if corpus.made_here else [])],
    )


def _what(corpus: Corpus) -> str:
    kinds = " and ".join(dict.fromkeys(KINDS[out.type][0] for out in corpus.outputs))
    return f"{kinds[:1].upper()}{kinds[1:]}, made by the Moxin pipeline (stage `{corpus.stage}`, node `{corpus.node}`)."


def _removed(corpus: Corpus) -> list[str]:
    lines = ["## What was left out", ""]
    if corpus.read is not None:
        lines += [f"{corpus.read:,} rows came in."]
    if not corpus.removed:
        return [*lines, "Nothing was left out, as far as its stage counts."]
    digest = card.short(corpus.outputs[0].digest)
    rows = [(reason, f"{count:,}", digest) for reason, count in sorted(corpus.removed.items(), key=lambda r: -r[1])]
    return [*lines, "", *card.table(("reason", "rows", "from"), rows, numbers=(1,))]


def _shares(corpus: Corpus, listings: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = ["## Sources and licences"]
    for out in corpus.outputs:
        lines += ["", f"### `{out.port}`", ""]
        listing = listings.get(out.port)
        if listing is not None:
            rows = [_data_set(row, out) for row in listing["data_sets"]]
            lines += card.table(("data set", "from where", "revision", "licence", "rows", "from"), rows, numbers=(4,))
            continue
        digest = card.short(out.digest)
        rows = [("source", name, f"{count:,}", digest) for name, count in sorted(out.per_source.items())]
        counts = _licenses(out, None)
        if counts is None:
            rows.append(("licence", NOT_COUNTED, "", digest))
        else:
            rows += [("licence", name, f"{count:,}", digest) for name, count in sorted(counts.items())]
        lines += card.table(("by", "which", "rows", "from"), rows, numbers=(2,))
    return lines


def _data_set(row: Mapping[str, Any], out: Output) -> tuple[str, ...]:
    toy = row["origin"] == "machine"
    count = _row_count(row)
    where = "made by the run, in its schema" if toy else row["origin"]
    name = f"toy-{row['id'].rpartition('/')[2]}" if toy else row["id"]
    return name, where, row.get("revision") or "", row.get("license") or UNNAMED, f"{count:,}", card.short(out.digest)


def _licenses(out: Output, listing: Mapping[str, Any] | None) -> dict[str, int] | None:
    """Rows by licence: as its stage counted them, or of a suite as its listing says."""
    if listing is None:
        return None if out.per_license is None else dict(out.per_license)
    counts: dict[str, int] = {}
    for row in listing["data_sets"]:
        name = row.get("license") or UNNAMED
        counts[name] = counts.get(name, 0) + _row_count(row)
    return counts


def with_listings(corpus: Corpus, listings: Mapping[str, Mapping[str, Any]]) -> Corpus:
    """A corpus whose suites have their rows by data set and by licence, from their listings."""
    outputs: list[Any] = []
    for out in corpus.outputs:
        listing = listings.get(out.port)
        if listing is not None:
            sets = {_data_set(row, out)[0]: _row_count(row) for row in listing["data_sets"]}
            out = replace(out, rows=sum(sets.values()), per_source=sets, per_license=_licenses(out, listing))
        outputs.append(out)
    return replace(corpus, outputs=tuple(outputs))


def _row_count(row: Mapping[str, Any]) -> int:
    return sum(sum(splits.values()) for splits in row["rows"].values())


def _settings(result: StageResult) -> list[str]:
    rows = [(f"`{name}`", f"`{json.dumps(value)}`") for name, value in flat(result.identity)]
    return ["## Settings", "", *card.table(("setting", "value"), rows)]


def _origin(result: StageResult) -> list[str]:
    rows = [("made from", f"`{source}` ({port})", f"`{manifest.digest}`") for port, source, manifest in inputs(result)]
    rows += [("output", f"`{port}`", f"`{out.digest}`") for port, out in result.outputs.items()]
    rows += [("key", f"stage {result.stage}, revision {result.revision}", f"`{result.key}`")]
    rows += [("code", f"commit {result.code.git_commit or 'unknown'}", f"`{result.code.source_digest}`")]
    return ["## Provenance", "", *card.table(("", "", "digest"), rows)]


def _number(value: int | None) -> str:
    return "not counted" if value is None else f"{value:,}"


def read_listings(ledger: Ledger, result: StageResult) -> dict[str, dict[str, Any]]:
    """`suite.json` of the suites of a result, by port. Raises ConfigError for one that is lost or damaged."""
    listings: dict[str, dict[str, Any]] = {}
    for port, out in result.outputs.items():
        entries: Sequence[Any] = [file for file in out.files if file.path == SUITE]
        for entry in entries:
            stored = ledger.store.get(entry.object)
            if stored is None or sha256(stored[0]) != entry.sha256:
                raise ConfigError(f"{result.node}.{port}: its {SUITE} is lost or damaged: run 'moxin repair'")
            listings[port] = json.loads(stored[0])
    return listings
