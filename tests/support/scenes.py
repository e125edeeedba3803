"""A handful of small scenes for the tests of the vision stages, and their rows. Nothing here needs PyTorch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stages.core.artifacts import ImageConversations, ImageSuite
from stages.core.context import LocalArtifact
from stages.core.testing import LocalContext, local_artifact
from stages.image_data.run import run
from stages.image_data.spec import ImageDataConfig


def data_config(**changes: Any) -> ImageDataConfig:
    """A few small scenes."""
    values: dict[str, Any] = {"origin": "machine", "scenes": 24, "test_scenes": 20, "test_questions": 12, "size": 32}
    return ImageDataConfig(**(values | changes))


def scenes(root: Path, **changes: Any) -> tuple[LocalArtifact, LocalArtifact]:
    """Training rows and suite."""
    ctx = LocalContext(root, data_config(**changes))
    run(ctx)
    return (
        local_artifact(ImageConversations, ctx.output("train"), {}, ctx.meta["train"]),
        local_artifact(ImageSuite, ctx.output("suite"), {}, ctx.meta["suite"]),
    )


def read_jsonl(path: Path) -> list[Any]:
    """The rows of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
