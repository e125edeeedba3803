"""Reports to be read back: published manifests, and the page parsed."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from typing import Any

from stages.core.artifacts import ArtifactManifest
from stages.core.keys import sha256, source_digest
from stages.core.ledger import Ledger
from stages.core.messages import Attempt, CodeRef, InputRef, StageResult
from stages.core.records import NodeRecord
from stages.pipeline import PIPELINE

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp;"


VOID = {"meta", "br", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """A page, parsed: its elements, text and whether tags are nested properly."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, f"not closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] not in (["style"], ["script"]):
            self.text += data

    def tags(self) -> set[str]:
        return {tag for tag, _ in self.elements}


def publish(
    ledger: Ledger,
    node: str,
    *,
    stats: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
    outputs: dict[str, ArtifactManifest] | None = None,
    inputs: dict[str, tuple[InputRef, ...]] | None = None,
    metrics: list[dict[str, float]] | None = None,
    source: str | None = None,
    profile: str = "tiny",
) -> StageResult:
    """A result as an attempt would have left it."""
    stage, key = PIPELINE[node].stage, sha256(node.encode())
    rows = f"objects/{stage}/{key}/000001/metrics.jsonl"
    if metrics is not None:
        ledger.store.put(rows, "".join(json.dumps(row) + "\n" for row in metrics).encode())
    result = StageResult(
        key=key, node=node, stage=stage, revision=PIPELINE[node].revision, config=config or {}, identity=config or {},
        inputs=inputs or {}, outputs=outputs or {},
        stats=stats or {}, metrics_object=None if metrics is None else rows,
        code=CodeRef(source_digest=source or source_digest(stage), git_commit="c0ffee" * 6),
        attempt=Attempt(
            run_id="run-1", epoch=1, started_at="2026-01-02T03:04:05.000+00:00",
            ended_at="2026-01-02T03:05:06.000+00:00",
            wall_seconds=61.0, cpu_seconds=91.5, peak_rss_bytes=123_400_000, bytes_in=10, bytes_out=20,
            machine={"processor": "abacus", "cores": 2},
        ),
    )  # fmt: skip
    ledger.store.put(f"manifests/{key}.json", result.model_dump_json().encode())
    ledger.set_node(profile, NodeRecord(node=node, key=key, run_id="run-1", at="2026-01-02T03:05:06.000+00:00"))
    return result
