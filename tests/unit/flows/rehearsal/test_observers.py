"""Who watches a rehearsal's stages."""

from __future__ import annotations

from pathlib import Path

from flows.rehearsal.observers import NodeLogs, Stops


class Execution:
    def __init__(self) -> None:
        self.asked: list[str] = []

    def stop_one(self, node: str) -> None:
        self.asked.append(node)


def test_each_node_is_stopped_once_after_its_first_checkpoint() -> None:
    execution = Execution()
    stops = Stops(execution, {"sft"})
    for node, step in (("vlm", 1), ("sft", 2), ("sft", 3)):
        stops.event(node, {"event": "checkpoint", "step": step})
    stops.event("sft", {"event": "progress", "done": 1})
    assert execution.asked == ["sft"]
    assert (stops.stopped, stops.left) == ({"sft": 2}, set())


def test_a_nodes_log_is_begun_anew(tmp_path: Path) -> None:
    for text in ("old", "new"):
        logs = NodeLogs(tmp_path / "deep")
        logs.event("sft", {"event": "log", "level": "warning", "message": text})
        logs.event("sft", {"event": "metric", "values": {}})
        logs.event("sft", {"event": "state", "state": "failed", "message": "because"})
    lines = logs.path("sft").read_text().splitlines()
    assert [line.partition(" ")[2] for line in lines] == ["warning: new", "state: because"]
