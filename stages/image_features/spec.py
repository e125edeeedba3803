"""The `image_features` stage: import the two towers, and look at every image once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from stages.core.artifacts import ArtifactManifest, ImageConversations, ImageFeatures, VisionTowers
from stages.core.config import Operational, StageConfig
from stages.core.preflight import PreflightContext, Problem, model_file
from stages.core.resources import Resources, Work
from stages.core.scale import Scale, amount
from stages.core.stage import Facets, Input, Output, Reading, Stage, output
from stages.lib.vision.shape import DINO, SIGLIP, TowerShape


class ImageFeaturesConfig(StageConfig):
    """Where the towers come from, and how images go through them. Defaults: Moxin-VLM's configuration (paper 6)."""

    origin: Literal["weights", "drawn"] = Field(
        default="weights",
        description=(
            "'weights': the towers named below; 'drawn': random weights, frozen all the same, for tests and tiny runs"
        ),
    )
    dino_path: Operational[str | None] = Field(
        default=None, description="weights: DINOv2 with registers, a Hugging Face folder or timm's safetensors file"
    )
    siglip_path: Operational[str | None] = Field(
        default=None, description="weights: SigLIP (1, not 2), a Hugging Face folder or timm's safetensors file"
    )
    dino_sha256: str | None = Field(
        default=None,
        pattern=r"^[0-9a-f]{64}$",
        description="weights: of DINOv2's safetensors file; part of the key, unlike its path",
    )
    siglip_sha256: str | None = Field(
        default=None,
        pattern=r"^[0-9a-f]{64}$",
        description="weights: of SigLIP's safetensors file; part of the key, unlike its path",
    )
    dino: TowerShape = Field(default=DINO, description="DINOv2's shape")
    siglip: TowerShape = Field(default=SIGLIP, description="SigLIP's shape")
    image_size: int = Field(default=224, gt=0, description="pixels on each side (Moxin-VLM; the paper prints none)")
    dtype: Literal["fp32", "bf16", "fp16"] = Field(
        default="bf16", description="of the stored features: training rounds to it anyway"
    )
    precision: Literal["fp32", "bf16"] = Field(
        default="bf16", description="of the towers' matrix products; fp32 on a CPU"
    )
    seed: int = Field(default=7, description="drawn: the weights")
    batch_size: Operational[int] = Field(default=64, gt=0, description="images in a forward pass")
    threads: Operational[int] = Field(default=2, gt=0, description="CPU threads")
    device: Operational[Literal["auto", "cpu", "cuda"]] = Field(
        default="auto", description="auto: a GPU if there is one"
    )

    @model_validator(mode="after")
    def _consistent(self) -> ImageFeaturesConfig:
        for name, shape in (("dino", self.dino), ("siglip", self.siglip)):
            if self.image_size % shape.patch:
                raise ValueError(f"image_size = {self.image_size} is no multiple of {name}.patch = {shape.patch}")
            if shape.hidden % shape.heads:
                raise ValueError(f"{name}.hidden = {shape.hidden} is no multiple of {name}.heads = {shape.heads}")
        if self.dino.patch != self.siglip.patch:
            raise ValueError(
                f"dino.patch = {self.dino.patch}, but siglip.patch = {self.siglip.patch}: features go side by side,"
                " patch by patch"
            )
        if self.dino.intermediate % self.dino.hidden:
            raise ValueError(
                f"dino.intermediate = {self.dino.intermediate} is no multiple of dino.hidden = {self.dino.hidden}"
            )
        return self

    @property
    def patches(self) -> int:
        """Patches of an image."""
        return (self.image_size // self.dino.patch) ** 2


class SeeImages(Stage[ImageFeaturesConfig], env="vlm", revision=3, reproducible="same hardware"):
    """Import the frozen vision towers, and store what they see of every training image, once."""

    images: Input[ImageConversations]
    towers: Output[VisionTowers] = output()
    features: Output[ImageFeatures] = output()

    reads: ClassVar[Mapping[str, Reading]] = {"images": "shards"}

    @classmethod
    def facets(cls, config: ImageFeaturesConfig, inputs: Mapping[str, Sequence[Facets]]) -> Mapping[str, Facets]:
        shared = {"patches": config.patches, "feature_width": config.dino.hidden + config.siglip.hidden}
        return {"towers": {**shared, "image_size": config.image_size}, "features": dict(shared)}

    def preflight(self, config: ImageFeaturesConfig, context: PreflightContext) -> Iterable[Problem]:
        if config.origin == "weights":
            towers = (
                ("dino", config.dino_path, config.dino_sha256, "DINOv2 with registers"),
                ("siglip", config.siglip_path, config.siglip_sha256, "SigLIP 1"),
            )
            for name, path, digest, what in towers:
                yield from model_file(f"{name}_path", path, digest, what, context)

    @classmethod
    def resources(cls, config: ImageFeaturesConfig) -> Resources:
        return Resources(cpus=config.threads, memory_gib=3 if config.origin == "drawn" else 16)

    @classmethod
    def work(cls, config: ImageFeaturesConfig, inputs: Mapping[str, Sequence[ArtifactManifest]]) -> Work:
        images = sum(int(m.meta.get("images", 0)) for m in inputs.get("images", ()))
        return Work(flops=images * config.patches * (_flops(config.dino) + _flops(config.siglip)))

    @classmethod
    def scale(cls, config: ImageFeaturesConfig, inputs: Mapping[str, Sequence[ArtifactManifest]]) -> Scale:
        """Every image is read once, and what both towers see of it is stored."""
        images, size = amount(inputs["images"], "images"), amount(inputs["images"], "bytes")
        width = (4 if config.dtype == "fp32" else 2) * config.patches * (config.dino.hidden + config.siglip.hidden)
        return Scale(
            outputs={"features": {"bytes": images * width, "files": max(1.0, images * width / (1 << 30))}},
            tasks=max(1.0, images * width / (1 << 30)),
            task_disk=float(2 << 30),
            read=size,
        )

    @classmethod
    def smaller(cls, config: ImageFeaturesConfig) -> ImageFeaturesConfig | None:
        return config.halved("batch_size")


def _flops(shape: TowerShape) -> float:
    """Forward floating-point operations of one patch: two for each weight that multiplies it."""
    return 2.0 * shape.layers * (4 * shape.hidden**2 + 2 * shape.hidden * shape.intermediate)
