"""Run `image_features`: import or draw the towers, then look at every image of the training rows once."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from stages.core.artifacts import FileEntry
from stages.core.context import Context
from stages.core.errors import ConfigError, InputError
from stages.core.files import file_sha256
from stages.image_features.spec import ImageFeaturesConfig
from stages.lib.data.steps import Steps
from stages.lib.modeling.device import compute_device
from stages.lib.vision.conversations import ImageReader, read_part
from stages.lib.vision.features import DTYPES, images_a_file, write_features, write_index
from stages.lib.vision.image_decoding import MAX_BYTES, ImageProblem, decode
from stages.lib.vision.modeling_moxin_vlm import pixel_values, tower_features
from stages.lib.vision.towers import Kind, draw_towers, import_tower, patches, save_towers

FILE = "features.safetensors"


def run(ctx: Context[ImageFeaturesConfig]) -> None:
    """Write `towers` and `features`."""
    config, images = ctx.config, ctx.input("images")
    compute_device(ctx.node, config.device, config.precision)  # whether there is one, before anything else
    torch.set_num_threads(config.threads)
    settings = config.model_dump_json()
    dino, siglip = _towers(ctx.node, settings)
    save_towers(Path(ctx.output("towers")), dino, siglip)
    count, width = patches(dino.config, siglip.config), dino.config.hidden_size + siglip.config.hidden_size
    rows = (row for part in images.entries(".jsonl") for row in read_part(part))
    names = list(dict.fromkeys(row.image for row in rows if row.image is not None))
    if not names:
        raise InputError(f"{ctx.node}: the rows of {images.node} have no image")
    digest = images.manifest.digest
    started = time.perf_counter()
    size = images_a_file(count, width, config.dtype)
    parts = [names[start : start + size] for start in range(0, len(names), size)]
    where = _archives(images.entries(".zip"))
    tasks = [{"node": ctx.node, "settings": settings, "names": part, "archives": where(part)} for part in parts]
    results = Steps(ctx.tasks).map("look", look, tasks, ctx.progress)
    for number, result in enumerate(results):
        ctx.link("features", f"features-{number:05d}.safetensors", result.file(FILE))
    write_index(Path(ctx.output("features")), names, [len(part) for part in parts], config.dtype, digest)
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
        images_per_second=round(len(names) / (time.perf_counter() - started), 1),
    )


def _archives(entries: Sequence[FileEntry]) -> Callable[[Iterable[str]], list[FileEntry]]:
    """Which archives hold these images, by their tables of contents alone."""
    holds: dict[str, FileEntry] = {}
    for entry in entries:
        reader = ImageReader([entry], MAX_BYTES)
        holds.update(dict.fromkeys(reader, entry))
        reader.close()
    return lambda names: list({holds[name].path: holds[name] for name in names if name in holds}.values())


@functools.lru_cache(maxsize=1)
def _towers(node: str, settings: str) -> tuple[Any, Any]:
    """The two towers, once a process."""
    config = ImageFeaturesConfig.model_validate_json(settings)
    if config.origin == "drawn":
        return draw_towers(config.dino, config.siglip, config.image_size, config.seed)
    towers = []
    parts: tuple[tuple[Kind, str | None, str | None, Any], ...] = (
        ("dino", config.dino_path, config.dino_sha256, config.dino),
        ("siglip", config.siglip_path, config.siglip_sha256, config.siglip),
    )
    for kind, path, sha256, shape in parts:
        if path is None or not Path(path).exists():
            raise ConfigError(
                f"{node}.{kind}_path = {path!r}: name a Hugging Face folder or timm's safetensors file on this"
                f" machine, or set {node}.origin = 'drawn'"
            )
        if sha256 is not None:
            _check_sum(f"{node}.{kind}_sha256", Path(path), sha256)
        towers.append(import_tower(kind, Path(path), shape, config.image_size))
    return towers[0], towers[1]


def _check_sum(where: str, path: Path, declared: str) -> None:
    file = path / "model.safetensors" if path.is_dir() else path
    actual = file_sha256(file) if file.is_file() else "no such file"
    if actual != declared:
        raise InputError(
            f"{where} is {declared[:12]}.., but {file.name} has {actual[:12]}: not the weights that were meant"
        )


@torch.no_grad()
def look(folder: Path, node: str, settings: str, names: list[str], archives: list[dict[str, Any]]) -> int:
    """Task: the features of some images, in order, in one file; how many."""
    config = ImageFeaturesConfig.model_validate_json(settings)
    device = compute_device(node, config.device, config.precision)
    dino, siglip = (tower.to(device) for tower in _towers(node, settings))
    reader = ImageReader([FileEntry.model_validate(row) for row in archives], MAX_BYTES)
    features = []
    for part in _parts(names, config.batch_size):
        pixels = pixel_values([_image(reader, name) for name in part], config.image_size).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            features.append(tower_features(dino, siglip, pixels).to(DTYPES[config.dtype]).cpu())
    reader.close()
    write_features(folder / FILE, features, config.dtype)
    return len(names)


def _parts(names: list[str], size: int) -> Iterator[list[str]]:
    stream = iter(names)
    while part := list(islice(stream, size)):
        yield part


def _image(reader: ImageReader, name: str) -> Any:
    try:
        return decode(reader[name])[0]
    except (KeyError, ImageProblem) as error:
        raise InputError(f"image {name} of the training rows cannot be used: {error}") from error
