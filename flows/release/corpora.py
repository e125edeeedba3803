"""What a result says of the data in it: how much came in and went out, what was left out and why, whose it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flows.release.lineage import CORPORA, made_here, table_of
from flows.report.corpus import PARTIAL
from stages.core.messages import StageResult
from stages.lib.formats.reports import TOY

UNNAMED = "no licence stated"
NOT_COUNTED = "not counted by this result"
ROWS = ("documents", "rows", "questions")
"""Names under which stages say how many rows an output has."""
HUB_FIELDS = ("sources", "text", "web", "code")
"""Settings that list where data comes from."""


@dataclass(frozen=True)
class Output:
    """One output with data in it. rows, text_bytes: None where the stage did not say."""

    port: str
    type: str
    digest: str
    rows: int | None
    text_bytes: int | None
    files: int
    size: int
    per_source: Mapping[str, int]
    per_license: Mapping[str, int] | None
    """Rows by SPDX expression ('' is `UNNAMED`); None: the stage did not count them."""


@dataclass(frozen=True)
class Corpus:
    """The data of one result. removed: rows by the reason why they were left out; read: rows that came in."""

    node: str
    stage: str
    key: str
    read: int | None
    removed: Mapping[str, int]
    outputs: tuple[Output, ...]
    made_here: bool
    data_sets: tuple[str, ...]
    """Names on the hub, owner/name, that its settings list."""


def describe(result: StageResult) -> Corpus:
    """The corpus of a result; one without data has no outputs."""
    outputs = tuple(
        Output(
            port=port,
            type=out.type,
            digest=out.digest,
            rows=_rows(out.meta),
            text_bytes=out.meta.get("text_bytes"),
            files=out.count,
            size=out.size,
            per_source=_sources(out.meta, result),
            per_license=_licenses(out.meta, result),
        )
        for port, out in result.outputs.items()
        if out.type in CORPORA
    )
    return Corpus(
        result.node, result.stage, result.key, _read(result.stats), removed(result.stats), outputs, made_here(result),
        data_sets(result.config),
    )  # fmt: skip


def removed(stats: Mapping[str, Any]) -> dict[str, int]:
    """Rows by the reason why a stage left them out, as its statistics say. Parts that were cut out of rows that stay
    count no row.
    """
    rows_by_reason: dict[str, int] = {}
    for kind in ("skipped", "dropped", "removed", "left_out"):
        for reason, count in table_of(stats.get(kind)).items():
            if "documents" in (parts := table_of(count)):
                rows_by_reason[reason] = parts["documents"]
            elif parts:
                rows_by_reason |= {f"{reason}: {why}": number for why, number in parts.items() if number}
            elif isinstance(count, int):
                rows_by_reason[reason] = count
    funnel = table_of(stats.get("funnel"))
    if isinstance(funnel.get("in"), Mapping):
        rows_by_reason |= {
            reason: row["documents"] for reason, row in funnel.items()
            if reason not in ("in", "out") and not reason.startswith(PARTIAL) and row.get("documents")
        }  # fmt: skip
    if "scored" in stats and "documents" in stats:
        rows_by_reason["scored below the threshold"] = stats["scored"] - stats["documents"]
    return {reason: count for reason, count in rows_by_reason.items() if count}


def data_sets(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Data sets of the hub that a configuration names: in mixtures, listings (hf://), and mirrors of benchmarks."""
    names: list[str] = []
    for field in HUB_FIELDS:
        for given in config.get(field) or ():
            if not (source := table_of(given)):
                continue
            name: str = source.get("data_set") or str(source.get("uri", ""))
            if not source.get("data_set"):
                name = name.removeprefix("hf://").partition("@")[0] if name.startswith("hf://") else ""
            names.append(name)
    sets = table_of(config.get("data_sets"))
    names += [name for name, source in sets.items() if table_of(source).get("origin") == "hub"]
    return tuple(dict.fromkeys(name for name in names if name.count("/") == 1))


def _read(stats: Mapping[str, Any]) -> int | None:
    funnel = table_of(stats.get("funnel"))
    if isinstance(funnel.get("in"), Mapping):
        return funnel["in"].get("documents")
    return next((stats[name] for name in ("records", "scored", "rows") if isinstance(stats.get(name), int)), None)


def _rows(meta: Mapping[str, Any]) -> int | None:
    for name in ROWS:
        value = meta.get(name)
        if isinstance(value, int):
            return value
        if isinstance(value, Mapping):
            return sum(table_of(value).values())
    return None


def _sources(meta: Mapping[str, Any], result: StageResult) -> dict[str, int]:
    """Rows by source; of images by kind, which is a benchmark's name: made ones never carry it bare."""
    if kinds := meta.get("kinds"):
        toy = TOY if made_here(result) else ""
        return {f"{toy}{name}": count for name, count in kinds.items()}
    return _counts(meta.get("per_source") or _only(result, "per_source"))


def _counts(value: Any) -> dict[str, int]:
    return {str(name): count for name, count in table_of(value).items()}


def _only(result: StageResult, name: str) -> Any:
    """A statistic of the whole result, where its one output with data is all that it can speak of."""
    outputs = [out for out in result.outputs.values() if out.type in CORPORA]
    return result.stats.get(name) if len(outputs) == 1 else None


def _licenses(meta: Mapping[str, Any], result: StageResult) -> dict[str, int] | None:
    counts = meta.get("per_license", _only(result, "per_license"))
    if not isinstance(counts, Mapping):
        return None
    return {name or UNNAMED: count for name, count in table_of(counts).items()}
