"""Run `image_features`: import or draw the towers, then look at every image of the training rows once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from stages.core.context import Context
from stages.core.errors import ConfigError, InputError
from stages.core.files import file_sha256
from stages.image_features.spec import ImageFeaturesConfig
from stages.lib.modeling.device import compute_device
from stages.lib.vision.conversations import ImageReader, read_rows
from stages.lib.vision.features import FeatureWriter
from stages.lib.vision.images import MAX_BYTES, ImageProblem, decode
from stages.lib.vision.modeling_moxin_vlm import pixel_values, tower_features
from stages.lib.vision.towers import Kind, draw_towers, import_tower, patches, save_towers


def run(ctx: Context[ImageFeaturesConfig]) -> None:
    """Write `towers` and `features`."""
    config, images = ctx.config, ctx.input("images")
    device = compute_device(ctx.node, ctx.config.device, ctx.config.precision)
    torch.set_num_threads(config.threads)
    dino, siglip = _towers(ctx)
    save_towers(Path(ctx.output("towers")), dino, siglip)
    count, width = patches(dino.config, siglip.config), dino.config.hidden_size + siglip.config.hidden_size
    names = list(dict.fromkeys(row.image for row in read_rows(images.path) if row.image is not None))
    if not names:
        raise InputError(f"{ctx.node}: the rows of {images.node} have no image")
    digest = images.manifest.digest
    writer = FeatureWriter(Path(ctx.output("features")), config.dtype, digest)
    seconds = _look(ctx, (dino.to(device), siglip.to(device)), names, writer, device)
    writer.close()
    parameters = sum(p.numel() for tower in (dino, siglip) for p in tower.parameters())
    shared = {"patches": count, "feature_width": width}
    ctx.describe(
        "towers",
        facets={**shared, "image_size": config.image_size},
        meta={"parameters": parameters, "origin": config.origin},
    )
    ctx.describe(
        "features", facets={**shared, "images_digest": digest}, meta={"images": len(names), "dtype": config.dtype}
    )
    ctx.stat(
        images=len(names),
        patches=count,
        feature_width=width,
        tower_parameters=parameters,
        images_per_second=round(len(names) / seconds, 1),
    )


def _towers(ctx: Context[ImageFeaturesConfig]) -> tuple[Any, Any]:
    config = ctx.config
    if config.origin == "drawn":
        return draw_towers(config.dino, config.siglip, config.image_size, config.seed)
    found = []
    parts: tuple[tuple[Kind, str | None, str | None, Any], ...] = (
        ("dino", config.dino_path, config.dino_sha256, config.dino),
        ("siglip", config.siglip_path, config.siglip_sha256, config.siglip),
    )
    for kind, path, sha256, shape in parts:
        if path is None or not Path(path).exists():
            raise ConfigError(
                f"{ctx.node}.{kind}_path = {path!r}: name a Hugging Face folder or timm's safetensors file on this"
                f" machine, or set {ctx.node}.origin = 'drawn'"
            )
        if sha256 is not None:
            _check_sum(f"{ctx.node}.{kind}_sha256", Path(path), sha256)
        found.append(import_tower(kind, Path(path), shape, config.image_size))
    return found[0], found[1]


def _check_sum(where: str, path: Path, wanted: str) -> None:
    file = path / "model.safetensors" if path.is_dir() else path
    found = file_sha256(file) if file.is_file() else "no such file"
    if found != wanted:
        raise InputError(
            f"{where} is {wanted[:12]}.., but {file.name} has {found[:12]}: these are not the weights that were meant"
        )


@torch.no_grad()
def _look(
    ctx: Context[ImageFeaturesConfig],
    towers: tuple[Any, Any],
    names: list[str],
    writer: FeatureWriter,
    device: torch.device,
) -> float:
    """Features of all images, in order; returns the seconds that it took."""
    config = ctx.config
    reader = ImageReader(ctx.input("images").files(".zip"), MAX_BYTES)
    started = time.perf_counter()
    done = 0
    for part in _parts(names, config.batch_size):
        pixels = pixel_values([_image(reader, name) for name in part], config.image_size).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            writer.add(part, tower_features(*towers, pixels))
        done += len(part)
        ctx.progress(done, len(names), "images")
    reader.close()
    return time.perf_counter() - started


def _parts(names: list[str], size: int) -> Iterator[list[str]]:
    stream = iter(names)
    while part := list(islice(stream, size)):
        yield part


def _image(reader: ImageReader, name: str) -> Any:
    try:
        return decode(reader[name])[0]
    except (KeyError, ImageProblem) as error:
        raise InputError(f"image {name} of the training rows cannot be used: {error}") from error
