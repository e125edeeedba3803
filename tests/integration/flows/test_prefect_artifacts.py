"""What of a node is shown in the Prefect UI while it runs: its curves, in one picture that is drawn anew."""

from __future__ import annotations

import base64
import contextlib
import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from flows import prefect_artifacts
from flows.prefect_artifacts import TaskObserver


class Pages:
    """The artifacts that a server was given, and what they were changed to; calls are made at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pictures: dict[UUID, list[tuple[str, str]]] = {}
        self.lines: list[tuple[int, str]] = []
        monkeypatch.setattr(prefect_artifacts, "create_image_artifact", self._create)
        monkeypatch.setattr(prefect_artifacts, "get_client", lambda sync_client: contextlib.nullcontext(self))
        log = logging.Logger("test", logging.INFO)
        log.handle = lambda record: self.lines.append((record.levelno, record.getMessage()))  # type: ignore[method-assign]
        monkeypatch.setattr(prefect_artifacts, "get_run_logger", lambda: log)

    def _create(self, image_url: str, key: str, description: str) -> UUID:
        assert key == "pretrain-1-curves"
        number = UUID(int=len(self.pictures))
        self.pictures[number] = [(image_url, description)]
        return number

    def update_artifact(self, artifact_id: UUID, artifact: Any) -> None:
        self.pictures[artifact_id].append((artifact.data, artifact.description))

    def put(self, key: str, call: Any) -> None:
        call()

    def drawings(self) -> Iterator[str]:
        """The pictures of the only artifact, oldest first."""
        (versions,) = self.pictures.values()
        return (base64.b64decode(url.partition(",")[2]).decode() for url, _ in versions)


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> Pages:
    monkeypatch.setattr(prefect_artifacts, "Spacing", lambda *limits: SimpleNamespace(due=lambda: True))
    return Pages(monkeypatch)


def metric(step: int, **values: float) -> dict[str, Any]:
    return {"event": "metric", "step": step, "values": values}


def test_curves_are_drawn_anew_as_they_grow_over_the_result_before(pages: Pages) -> None:
    asked: list[int] = []

    def former() -> list[dict[str, float]]:
        asked.append(1)
        return [{"step": 1, "loss": 6.0}]

    observer = TaskObserver("pretrain_1", pages, former)  # type: ignore[arg-type]
    for step in (1, 2):
        observer.event("pretrain_1", metric(step, loss=5.0 - step, learning_rate=0.1))
    observer.event("pretrain_1", {"event": "state", "state": "done"})
    drawings = list(pages.drawings())
    assert len(drawings) == 3
    assert drawings[0] != drawings[1], "it shows one more row"
    assert drawings[1] == drawings[2]
    assert all(f"<!-- {word} -->" in drawings[0] for word in ("loss, before", "learning rate", "pretrain_1"))
    assert asked == [1]


def test_what_is_not_right_is_a_line_of_the_log_and_of_the_picture(pages: Pages) -> None:
    observer = TaskObserver("pretrain_1", pages)  # type: ignore[arg-type]
    for step in range(1, 40):
        observer._pictures = SimpleNamespace(due=lambda step=step: step in (20, 39))  # type: ignore[assignment]
        observer.event("pretrain_1", metric(step, loss=2.0 if step < 30 else 9.0))
    (warning,) = [text for level, text in pages.lines if level == logging.WARNING]
    assert warning.startswith("loss spike at step 30: 9, usual 2. one or a few batches")
    (versions,) = pages.pictures.values()
    assert "loss spike" not in versions[0][1]
    assert "loss spike at step 30" in versions[1][1]
    assert "#c0312b" in list(pages.drawings())[-1]


def test_a_node_without_metrics_has_no_picture(pages: Pages) -> None:
    observer = TaskObserver("collect", pages)  # type: ignore[arg-type]
    observer.event("collect", {"event": "state", "state": "done"})
    observer.event("collect", metric(1, documents=3.0))
    assert pages.pictures == {}
