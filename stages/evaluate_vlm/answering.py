"""The model answers in batches: it writes greedily, or chooses by likelihood. A batch answers as single questions
would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor, nn

from stages.lib.vision.modeling_moxin_vlm import MoxinVLM, pixel_values
from stages.lib.vision.prompts import answer_ids, prompt_ids

T = TypeVar("T")


@dataclass(frozen=True)
class Asked:
    """A prompt as ids, and the name of the image that it is about."""

    ids: list[int]
    image: str


class Answerer:
    """A model that looks at each image once, whatever it is asked of it."""

    def __init__(self, model: MoxinVLM, tokenizer: Tokenizer, batch_size: int, device: torch.device) -> None:
        nn.Module.to(model, device)
        self._model, self._tokenizer, self._batch_size, self._device = model, tokenizer, batch_size, device
        self._pad = int(model.config.pad_token_id or 0)
        self._features: dict[str, Tensor] = {}
        self.context = int(model.config.text_config.max_position_embeddings)

    def look(self, images: Iterable[tuple[str, Image.Image]]) -> None:
        """Compute the features of images by name, a batch of images at a time; those of earlier images are forgotten.

        They wait in main memory: a benchmark's are gigabytes (1.1 MB an image in bf16), and the card holds the model.
        """
        self._features.clear()
        size = self._model.config.siglip_config.image_size
        stream = iter(images)
        while part := list(islice(stream, self._batch_size)):
            pixels = pixel_values([image for _, image in part], size).to(self._device, self._model.dtype)
            for (name, _), features in zip(part, self._model.image_features(pixels), strict=True):
                self._features[name] = features.cpu()

    def ask(self, prompt: str, image: str) -> Asked:
        """A question about an image."""
        return Asked(
            prompt_ids(self._tokenizer, prompt, self._model.config.image_token_id, self._model.config.patches), image
        )

    def write(
        self, asked: Sequence[Asked], max_new_tokens: int, progress: Callable[[int], None] = lambda n: None
    ) -> list[str]:
        """Greedy answers."""
        out = [""] * len(asked)
        for numbers in self._batches(asked):
            ids, mask = self._padded([asked[i].ids for i in numbers])
            generated = self._model.generate(  # type: ignore[attr-defined]
                input_ids=ids,
                attention_mask=mask,
                patch_features=self._images(asked, numbers),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                pad_token_id=self._pad,
            )
            texts = self._tokenizer.decode_batch(generated[:, ids.shape[1] :].tolist(), skip_special_tokens=True)
            for i, text in zip(numbers, texts, strict=True):
                out[i] = text.strip()
            progress(len(numbers))
        return out

    @torch.no_grad()
    def choose(
        self, asked: Sequence[Asked], options: Sequence[str], progress: Callable[[int], None] = lambda n: None
    ) -> list[list[float]]:
        """Log-likelihoods of the options for each question.

        Options of one token each, as upstream demands, are read off one forward pass; longer ones get one each.
        """
        tokens = [answer_ids(self._tokenizer, option) for option in options]
        out: list[list[float]] = [[] for _ in asked]
        single = all(len(part) == 1 for part in tokens)
        for numbers in self._batches(asked):
            features = self._images(asked, numbers)
            if single:
                logits = self._logits([asked[i].ids for i in numbers], features, 1)[:, -1]
                likelihoods = logits.log_softmax(-1)[:, [part[0] for part in tokens]].T
            else:
                likelihoods = torch.stack(
                    [self._likelihood([asked[i].ids for i in numbers], part, features) for part in tokens]
                )
            for i, row in zip(numbers, likelihoods.T.tolist(), strict=True):
                out[i] = row
            progress(len(numbers))
        return out

    def _likelihood(self, prompts: list[list[int]], option: list[int], features: Tensor) -> Tensor:
        """Log-likelihood [B] of an option after each prompt."""
        logits = self._logits([[*prompt, *option] for prompt in prompts], features, len(option) + 1)[:, :-1]
        option_ids = torch.tensor(option, device=self._device).expand(len(prompts), -1)
        return logits.log_softmax(-1).gather(-1, option_ids[..., None]).squeeze(-1).sum(-1)

    def _logits(self, sequences: list[list[int]], features: Tensor, last: int) -> Tensor:
        """Logits of the last positions [B, last, V], float32."""
        ids, mask = self._padded(sequences)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        output = self._model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            patch_features=features,
            logits_to_keep=last,
            use_cache=False,
        )
        return output.logits.float()

    def _padded(self, sequences: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
        """Ids and attention mask [B, T], padded on the left: all end together."""
        width = max(len(ids) for ids in sequences)
        ids = torch.tensor([[self._pad] * (width - len(part)) + part for part in sequences], device=self._device)
        mask = torch.tensor([[0] * (width - len(part)) + [1] * len(part) for part in sequences], device=self._device)
        return ids, mask

    def _images(self, asked: Sequence[Asked], numbers: Sequence[int]) -> Tensor:
        return torch.stack([self._features[asked[i].image] for i in numbers]).to(self._device)

    def _batches(self, asked: Sequence[Asked]) -> Iterator[list[int]]:
        """Numbers of questions, longest first, so that a batch has little padding."""
        order = sorted(range(len(asked)), key=lambda i: -len(asked[i].ids))
        yield from _parts(order, self._batch_size)


def _parts(items: Sequence[T], size: int) -> Iterator[list[T]]:
    for start in range(0, len(items), size):
        yield list(items[start : start + size])
