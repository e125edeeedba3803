"""A pipeline with a node that measures contamination, an overlap and samples in a store of this process."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

from stages.contamination.spec import Contamination
from stages.core.artifacts import ArtifactManifest, FileEntry
from stages.core.graph import Pipeline
from stages.core.keys import sha256
from stages.lib.evaluation.item_text import item_mark
from stages.lib.formats.overlap import (
    ItemOverlap,
    Match,
    Overlap,
    OverlapRule,
    SplitOverlap,
    TrainingData,
    items_path,
)
from stages.pipeline import PIPELINE
from tests.support.report_pages import publish
from tests.support.report_results import evaluation, manifest, score

DATA_SET = "some/questions"
GPT3 = OverlapRule(name="gpt3", run=13, min_words=8, common=10, skips=0)
QUESTIONS = ("zero", "one", "two", "three")
"""Item 0 lies in dedup_text, 1 in instructions_tulu, 2 is too short, 3 is clean."""


def pipeline() -> Pipeline:
    """The paper's, with a node of this stage over some of its training data."""
    node: Any = PIPELINE
    measuring = Contamination(
        name="contamination",
        suites=[node["capability"].suite],
        documents=[node["dedup_text"].documents, node["capability"].train],
        conversations=[node["instructions_tulu"].train],
    )
    return Pipeline([*(n for n in PIPELINE if n.stage != "contamination"), measuring])


class Results:
    """Published results without a server: what `flows.contamination.measure` reads."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.results: dict[str, Any] = {}
        self.store = SimpleNamespace(get=self._get, put=self.objects.__setitem__)

    def _get(self, key: str) -> tuple[bytes, str] | None:
        return (self.objects[key], "tag") if key in self.objects else None

    def set_node(self, *_: Any) -> None:
        """Nobody asks for it."""

    def artifact(self, type: str, files: dict[str, str]) -> ArtifactManifest:
        """Store the files of an artifact."""
        entries = []
        for path, text in files.items():
            data = text.encode()
            self.objects[f"{type}/{path}/{sha256(data)}"] = data
            entry = f"{type}/{path}/{sha256(data)}"
            entries.append(FileEntry(path=path, size=len(data), sha256=sha256(data), object=entry))
        return manifest(type, tuple(entries))

    def overlap(self, rule: OverlapRule = GPT3) -> None:
        """Publish an overlap of the four questions."""

        def match(node: str) -> tuple[Match, ...]:
            return (Match(node=node, fraction=1.0, longest=13, spans=((0, 20),), document="d/1"),)

        held = [match("dedup_text"), match("instructions_tulu"), (), ()]
        items = [
            ItemOverlap(
                config="default",
                split="test",
                item=n,
                mark=item_mark(QUESTIONS[n]),
                words=20,
                skipped=n == 2,
                matches=m,
            )
            for n, m in enumerate(held)
        ]
        split = SplitOverlap(
            data_set=DATA_SET, config="default", split="test", toy=True, text="all strings", items=4, skipped=1,
            only_common=0, flagged={"dedup_text": 1, "instructions_tulu": 1}, any=2,
        )  # fmt: skip
        read = TrainingData(node="dedup_text", kind="documents", digest="e" * 64, documents=9, bytes=900, words=150)
        whole = Overlap(rule=rule, runs=9, ignored_runs=0, equal_hashes=0, training=(read,), splits=(split,))
        files = {
            "overlap.json": whole.model_dump_json(),
            items_path(DATA_SET): "".join(item.model_dump_json() + "\n" for item in items),
        }
        self._publish("contamination", "Overlap", files, "collect")

    def evaluation(
        self, node: str, model: str, right: list[float], asked: tuple[str, ...] = QUESTIONS, programs: int = 1
    ) -> None:
        """Publish an evaluation that asked these questions, with the metric of each. programs: samples of each, of
        which the first alone has the metric, as those of `execute_code`.
        """
        value = sum(right) / len(right)
        report = evaluation(model, score("piqa", value, 0.1, data_set=DATA_SET, n=len(right), toy=True, metric="acc"))
        samples = [
            {"task": "piqa", "doc_id": n, "doc": {"question": question}, "sample": k} | ({"acc": acc} if k == 0 else {})
            for n, (question, acc) in enumerate(zip(asked, right, strict=True))
            for k in range(programs)
        ]
        files = {
            "report.json": report.model_dump_json(),
            "samples/zero_shot.piqa.jsonl": "".join(json.dumps(row) + "\n" for row in samples),
        }
        self._publish(node, "EvalReport", files, node)

    def _publish(self, node: str, type: str, files: dict[str, str], stage_of: str) -> None:
        ledger: Any = self
        self.results[node] = publish(ledger, stage_of, outputs={"out": self.artifact(type, files)})
