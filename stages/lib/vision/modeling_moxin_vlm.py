"""Moxin VLM: DINOv2 and SigLIP patch features side by side, a three-layer projector, and the Moxin decoder (paper 6).

This file stands alone (torch, transformers, numpy, Pillow): it is copied into every exported folder, so that the folder
loads with `AutoModelForImageTextToText` elsewhere. This repository imports it as a module and never runs a copy.

An image takes the place of `<image>` ids right after BOS, one id a patch, as in Prismatic: `<s> [patches] In: ..
\\nOut: ..`. Shapes: B batch, T tokens, P patches, F fused feature width, D width of the decoder.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from transformers import (
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    GenerationMixin,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""What DINOv2 was trained with (timm's and transformers' configuration of it)."""
SIGLIP_MEAN = SIGLIP_STD = (0.5, 0.5, 0.5)
"""What SigLIP was trained with."""
FEATURE_LAYER = -2
"""The towers' last block but one (Prismatic)."""


def pixel_values(images: Sequence[Image.Image], size: int) -> Tensor:
    """RGB images as the towers' input [B, 6, size, size]: DINOv2's channels, then SigLIP's.

    `resize-naive`: a bicubic resize to a square, whatever the proportions (Moxin-VLM's configuration).
    """
    resized = [
        np.asarray(image.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32) / 255.0 for image in images
    ]
    x = torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    half, width = (torch.tensor(values).view(3, 1, 1) for values in (SIGLIP_MEAN, SIGLIP_STD))
    return torch.cat([(x - mean) / std, (x - half) / width], dim=1)


class MoxinVLMConfig(PreTrainedConfig):
    """The three parts' own configurations, and where an image goes."""

    model_type = "moxin_vlm"
    sub_configs: ClassVar[dict[str, Any]] = {
        "text_config": MistralConfig,
        "dino_config": Dinov2WithRegistersConfig,
        "siglip_config": SiglipVisionConfig,
    }

    def __init__(
        self,
        text_config: Any = None,
        dino_config: Any = None,
        siglip_config: Any = None,
        image_token_id: int = 32001,
        vision_feature_layer: int = FEATURE_LAYER,
        image_resize_strategy: str = "resize-naive",
        **kwargs: Any,
    ) -> None:
        self.text_config = _part(text_config, MistralConfig)
        self.dino_config = _part(dino_config, Dinov2WithRegistersConfig)
        self.siglip_config = _part(siglip_config, SiglipVisionConfig)
        self.image_token_id = image_token_id
        self.vision_feature_layer = vision_feature_layer
        self.image_resize_strategy = image_resize_strategy
        super().__init__(**kwargs)

    @property
    def patches(self) -> int:
        """Patches of an image: both towers cut it into the same squares."""
        return (self.siglip_config.image_size // self.siglip_config.patch_size) ** 2

    @property
    def feature_width(self) -> int:
        """Width of the fused features."""
        return self.dino_config.hidden_size + self.siglip_config.hidden_size


def _part(value: Any, kind: type[PreTrainedConfig]) -> Any:
    if isinstance(value, PreTrainedConfig):
        return value
    return kind(**{k: v for k, v in (value or {}).items() if k != "model_type"})


def tower_features(dino: Any, siglip: Any, pixels: Tensor, layer: int = FEATURE_LAYER) -> Tensor:
    """Fused patch features [B, P, F] of pixels [B, 6, H, W]: the block's output, without class and register tokens, no
    final norm.
    """
    prefix = 1 + dino.config.num_register_tokens
    left = dino(pixel_values=pixels[:, :3], output_hidden_states=True).hidden_states[layer][:, prefix:]
    right = siglip(pixel_values=pixels[:, 3:], output_hidden_states=True).hidden_states[layer]
    return torch.cat([left, right], dim=-1)


class FusedProjector(nn.Module):
    """Prismatic's `fused-gelu-mlp`: F -> 4F -> D -> D. PyTorch's own initialization: with transformers' 0.02 a small
    model never learns to look (Moxin's docs/recipe.md, Vision and language).
    """

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(features, 4 * features)
        self.fc2 = nn.Linear(4 * features, width)
        self.fc3 = nn.Linear(width, width)

    def forward(self, features: Tensor) -> Tensor:
        """[.., F] -> [.., D]."""
        return self.fc3(F.gelu(self.fc2(F.gelu(self.fc1(features)))))


class MoxinVLM(PreTrainedModel, GenerationMixin):
    """The whole model. `dino` and `siglip` are None while it trains on stored features."""

    config_class = MoxinVLMConfig
    config: MoxinVLMConfig
    main_input_name = "input_ids"
    _supports_sdpa = True
    _no_split_modules = ["MistralDecoderLayer"]

    def __init__(self, config: MoxinVLMConfig, towers: bool = True) -> None:
        super().__init__(config)
        self.dino = Dinov2WithRegistersModel(config.dino_config) if towers else None
        self.siglip = SiglipVisionModel(config.siglip_config) if towers else None
        self.projector = FusedProjector(config.feature_width, config.text_config.hidden_size)
        self.language_model = MistralForCausalLM(config.text_config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: each part has initialized itself, and the projector keeps PyTorch's default."""

    def get_input_embeddings(self) -> Any:
        return self.language_model.get_input_embeddings()

    def get_output_embeddings(self) -> Any:
        return self.language_model.get_output_embeddings()

    @torch.no_grad()
    def image_features(self, pixels: Tensor) -> Tensor:
        """Patch features [B, P, F] of pixels [B, 6, H, W]; the towers are frozen."""
        if self.dino is None or self.siglip is None:
            raise ValueError("this model was built without its towers: give patch_features")
        return tower_features(self.dino, self.siglip, pixels, self.config.vision_feature_layer)

    def embed(self, input_ids: Tensor, patch_features: Tensor | None) -> Tensor:
        """Embeddings [B, T, D]; the rows of `<image>` ids are replaced by projected patches, in order."""
        embeddings = self.get_input_embeddings()(input_ids)
        if patch_features is None:
            return embeddings
        projected = self.projector(patch_features.to(self.projector.fc1.weight.dtype)).to(embeddings.dtype)
        at = (input_ids == self.config.image_token_id).unsqueeze(-1)
        return embeddings.masked_scatter(at.expand_as(embeddings), projected)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        patch_features: Tensor | None = None,
        labels: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits [B, T, V] of input_ids (or of inputs_embeds); or, with labels [B, T] (-100: not an answer), the loss
        alone.

        The loss is the summed cross-entropy of the labelled tokens over `num_items_in_batch`
        (unset: their number here).
        Logits exist for labelled tokens only, which are a small share of a visual prompt.
        """
        if inputs_embeds is None and input_ids is not None:
            if patch_features is None and pixel_values is not None:
                patch_features = self.image_features(pixel_values)
            inputs_embeds = self.embed(input_ids, patch_features)
        if labels is None:
            return self.language_model(
                inputs_embeds=inputs_embeds, attention_mask=attention_mask, past_key_values=past_key_values, **kwargs
            )
        items = kwargs.get("num_items_in_batch")
        hidden = self.language_model.model(inputs_embeds=inputs_embeds, attention_mask=attention_mask).last_hidden_state
        targets = labels[:, 1:]
        chosen = targets != -100
        logits = self.language_model.lm_head(hidden[:, :-1][chosen]).float()
        total = F.cross_entropy(logits, targets[chosen], reduction="sum")
        return CausalLMOutputWithPast(loss=total / max(1, items or int(chosen.sum())))

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        patch_features: Tensor | None = None,
        is_first_iteration: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The image enters with the prompt; later steps have it in the cache, if there is one."""
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(  # type: ignore[attr-defined]
            input_ids, is_first_iteration=is_first_iteration, **kwargs
        )
        if is_first_iteration or not kwargs.get("use_cache", True):
            inputs |= {"pixel_values": pixel_values, "patch_features": patch_features}
        return inputs
