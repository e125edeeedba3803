"""Image features in several files, as tasks that an interrupted attempt does not do again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stages.core.artifacts import ImageFeatures
from stages.core.testing import LocalContext, local_artifact
from stages.image_features import run as stage
from stages.lib.vision import features as stored
from stages.lib.vision.features import Features
from tests.support import vision
from tests.support.scenes import scenes


def test_files_hold_a_fixed_number_of_images_and_what_is_done_is_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, _ = scenes(tmp_path / "scenes")
    _, whole = vision.features(tmp_path / "whole", train)
    one = Features(whole.entries())
    patches, width = one.batch(one.names[:1]).shape[1:]
    monkeypatch.setattr(stored, "SHARD_BYTES", 5 * patches * width * 4 + 3)
    looked: list[int] = []
    images = stage.tower_features

    def counted(*arguments: torch.Tensor) -> torch.Tensor:
        looked.append(len(arguments[-1]))
        if stop and sum(looked) > 12:
            raise RuntimeError("stopped")
        return images(*arguments)

    monkeypatch.setattr(stage, "tower_features", counted)
    stop = True
    ctx = LocalContext(tmp_path / "cut", vision.features_config(batch_size=3), {"images": [train]})
    with pytest.raises(RuntimeError, match="stopped"):
        stage.run(ctx)
    stop, done = False, sum(looked[:-1]) // 5 * 5
    assert done > 0
    looked.clear()
    stage.run(ctx)
    assert sum(looked) == len(one) - done
    files = sorted(path.name for path in ctx.output("features").glob("*.safetensors"))
    assert files == [f"features-{n:05d}.safetensors" for n in range(-(-len(one) // 5))]
    cut, names = Features(local_artifact(ImageFeatures, ctx.output("features")).entries()), one.names
    assert list(cut._where) == names
    assert torch.allclose(cut.batch(names), one.batch(names), atol=1e-6), "batches of other sizes sum otherwise"


def test_the_same_images_give_the_same_bytes(tmp_path: Path) -> None:
    train, _ = scenes(tmp_path / "scenes")
    _, first = vision.features(tmp_path / "first", train)
    _, second = vision.features(tmp_path / "second", train)
    assert [(f.path, f.sha256) for f in first.manifest.files] == [(f.path, f.sha256) for f in second.manifest.files]
