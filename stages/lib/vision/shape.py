"""The shapes of the vision towers: light to import. Defaults are the paper's (Moxin-VLM's configuration)."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class TowerShape(BaseModel):
    """Architecture of one tower, where no weights say it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hidden: int = Field(gt=0, description="width")
    layers: int = Field(gt=1, description="blocks; the output of the last but one is used")
    heads: int = Field(gt=0, description="attention heads")
    intermediate: int = Field(gt=0, description="width inside the MLP")
    patch: int = Field(default=14, gt=0, description="side of a patch, pixels")


DINO = TowerShape(hidden=1024, layers=24, heads=16, intermediate=4096)
"""DINOv2 ViT-L/14 (timm vit_large_patch14_reg4_dinov2.lvd142m)."""
SIGLIP = TowerShape(hidden=1152, layers=27, heads=16, intermediate=4304)
"""SigLIP so400m/14 (timm vit_so400m_patch14_siglip_224.webli: SigLIP 1)."""
REGISTERS = 4
"""Register tokens of that DINOv2."""
