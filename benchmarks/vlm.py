"""What storing the frozen towers' features saves: the same training steps, from stored features and with the towers in
the loop.

    python -m benchmarks.vlm [--side 32] [--steps 40] [--json]

Both runs take the same rows in the same order and give the same losses (tests/training/stages/vlm/test_run.py); only
where the features come from differs. Towers are drawn, of the shape of profile `tiny` (side 32: 4 patches) or deeper
and finer as `--layers` and `--side` say. For 7b the factor is computed from the shapes, not measured: floating-point
operations of a step with and without the towers.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from stages.core.artifacts import ImageConversations, ImageFeatures, Model, VisionTowers
from stages.core.context import LocalArtifact
from stages.core.testing import LocalContext, local_artifact
from stages.image_data.run import run as make_data
from stages.image_data.spec import ImageDataConfig
from stages.image_features.run import run as see
from stages.image_features.spec import ImageFeaturesConfig, _flops
from stages.lib.modeling.decoder import MoxinLM
from stages.lib.modeling.hf_checkpoint import save_model
from stages.lib.modeling.shape import ModelShape
from stages.lib.vision.shape import DINO, SIGLIP, TowerShape
from stages.vlm.run import run as train
from stages.vlm.spec import TOKENS_A_ROW, VlmConfig
from tests.support.vision import FACETS, tokenizer

SHAPE = ModelShape(
    layers=4, hidden=128, intermediate=352, heads=4, kv_heads=2, head_dim=32, window=96, max_positions=1024
)
"""Profile tiny's."""
PATCHES_7B, PARAMETERS_7B = 256, 8_114_180_096
BATCH, THREADS = 16, 1


def base_model(root: Path) -> LocalArtifact:
    """A base with drawn weights: what a step costs does not depend on them."""
    for name in ("tokenizer", "base"):
        (root / name).mkdir(parents=True)
    entries = tokenizer(root / "tokenizer")
    model = MoxinLM(SHAPE, entries)
    model.initialize(0)
    save_model(model, root / "base", root / "tokenizer", "card")
    return local_artifact(Model, root / "base", {**FACETS, "vocab_size": entries, "context_length": 1024})


def measure(root: Path, side: int, layers: int, steps: int) -> dict[str, Any]:
    """Processor seconds of the whole `vlm` stage with stored features and with towers in the loop, and of looking at
    all images once.
    """
    data = LocalContext(
        root / "data",
        ImageDataConfig(
            origin="machine", scenes=steps * BATCH // 3 // 2, text_share=0.0, test_scenes=4, test_questions=3
        ),
    )
    make_data(data)
    rows = local_artifact(ImageConversations, data.output("train"), {}, data.meta["train"])
    dino, siglip = (TowerShape(hidden=h, layers=layers, heads=4, intermediate=256, patch=16) for h in (64, 96))
    config = ImageFeaturesConfig(
        origin="drawn", dino=dino, siglip=siglip, image_size=side, dtype="fp32", precision="fp32", threads=THREADS
    )
    seen = LocalContext(root / "features", config, {"images": [rows]})
    started = time.process_time()
    see(seen)
    once = time.process_time() - started
    inputs = {
        "base": [base_model(root / "base")],
        "conversations": [rows],
        "towers": [local_artifact(VisionTowers, seen.output("towers"), seen.facets["towers"], seen.meta["towers"])],
    }
    stored = {**inputs, "features": [local_artifact(ImageFeatures, seen.output("features"), seen.facets["features"])]}
    figures = {
        "patches": config.patches,
        "layers": layers,
        "images": seen.stats["images"],
        "look_once_cpu_seconds": round(once, 2),
    }
    for name, given in (("stored", stored), ("towers_in_the_loop", inputs)):
        settings = VlmConfig(
            global_batch_size=BATCH,
            micro_batch_size=BATCH,
            learning_rate=1e-3,
            precision="fp32",
            max_length=1024,
            threads=THREADS,
            log_every=1,
        )
        ctx = LocalContext(root / name, settings, given)
        started = time.process_time()
        train(ctx)
        figures |= {"steps": ctx.stats["steps"], f"{name}_cpu_seconds": round(time.process_time() - started, 2)}
    return figures | {"factor": round(figures["towers_in_the_loop_cpu_seconds"] / figures["stored_cpu_seconds"], 2)}


def factor_7b() -> float:
    """Operations of a training row with the towers over those without, at the paper's sizes."""
    decoder = 6.0 * PARAMETERS_7B * TOKENS_A_ROW
    towers = PATCHES_7B * (_flops(DINO) + _flops(SIGLIP))
    return (decoder + towers) / decoder


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--side", type=int, nargs="+", default=[32, 112])
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=40, help="optimizer steps of each run, about")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    figures = []
    for side in options.side:
        with tempfile.TemporaryDirectory() as folder:
            figures.append(measure(Path(folder), side, options.layers, options.steps))
    result = {
        "cores": os.cpu_count(),
        "threads": THREADS,
        "measured": figures,
        "7b_computed_factor": round(factor_7b(), 4),
    }
    if options.json:
        print(json.dumps(result, indent=1))
        return
    for row in figures:
        print(", ".join(f"{name} {value}" for name, value in row.items()))
    print(f"7b, computed: {result['7b_computed_factor']} times the operations with towers in the loop")


if __name__ == "__main__":
    main()
