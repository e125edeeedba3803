"""Pairs of answers as token ids with the mask of the tokens that count, padded into TRL's batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from stages.dpo.spec import DpoConfig
from stages.lib.finetuning.encoding import BATCH, IGNORED, Row, batched, encode, encode_prompts, spells_control, tidy
from stages.lib.formats.examples import Preference

SIDES = ("chosen", "rejected")


@dataclass
class Pairs:
    """Encoded pairs: columns `<side>_ids` and `<side>_mask`, and what happened on the way."""

    rows: list[Row] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)  # which of the pairs that were seen these are
    seen: int = 0
    truncated: int = 0
    tokens: int = 0
    removed: Counter[str] = field(default_factory=Counter)

    def labelled(self, side: str) -> list[Row]:
        """One side as ids and labels, to measure on."""
        return [
            {
                "input_ids": r[f"{side}_ids"],
                "labels": [i if m else IGNORED for i, m in zip(r[f"{side}_ids"], r[f"{side}_mask"], strict=True)],
            }
            for r in self.rows
        ]


def tidy_pair(pair: Preference) -> Preference:
    """A pair whose answers do not begin with line feeds (`tidy`)."""
    return {**pair, "prompt": tidy(pair["prompt"]), "chosen": tidy(pair["chosen"]), "rejected": tidy(pair["rejected"])}


def encode_pairs(
    tokenizer: PreTrainedTokenizerBase, pairs: Iterable[Preference], config: DpoConfig, max_rows: int | None
) -> Pairs:
    """Encode pairs; one whose answer is cut away, or that becomes identical, is left out and counted."""
    encoded = Pairs()
    for part in batched(islice(pairs, max_rows), BATCH):
        numbered = [
            (encoded.seen + i, tidy_pair(p))
            for i, p in enumerate(part)
            if not spells_control([*p["prompt"], *p["chosen"], *p["rejected"]])
        ]
        good = [p for _, p in numbered]
        encoded.seen += len(part)
        encoded.removed["spells a control token"] += len(part) - len(good)
        starts = [len(ids) for ids in encode_prompts(tokenizer, [p["prompt"] for p in good])]
        sides = [encode(tokenizer, [[*p["prompt"], *p[side]] for p in good]) for side in SIDES]
        for (position, _), start, *both in zip(numbered, starts, *sides, strict=True):
            if _add(encoded, start, both, config):
                encoded.kept.append(position)
    encoded.removed = +encoded.removed
    return encoded


def _add(encoded: Pairs, start: int, both: Sequence[tuple[list[int], list[int]]], config: DpoConfig) -> bool:
    """Add a pair, or count why not."""
    row: Row = {}
    for side, (ids, mask) in zip(SIDES, both, strict=True):
        kept = mask if config.turns == "all" else [m if i >= start else 0 for i, m in enumerate(mask)]
        row |= {f"{side}_ids": ids[: config.max_length], f"{side}_mask": kept[: config.max_length]}
        if not any(row[f"{side}_mask"][start:]):
            encoded.removed["no answer within max_length"] += 1
            return False
    if row["chosen_ids"] == row["rejected_ids"]:
        encoded.removed["identical within max_length"] += 1
        return False
    encoded.truncated += any(len(ids) > config.max_length for ids, _ in both)
    encoded.tokens += len(row["chosen_ids"]) + len(row["rejected_ids"])
    encoded.rows.append(row)
    return True


class PairCollator:
    """Rows of `Pairs` to TRL's batch: first the chosen answers, then the rejected ones; reference log-probabilities if
    known.
    """

    def __init__(self, pad: int) -> None:
        self.pad = pad

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """ids, attention mask and completion mask [2 x rows, longest]; ref_*_logps [rows]."""
        ids = [r[f"{side}_ids"] for side in SIDES for r in rows]
        masks = [r[f"{side}_mask"] for side in SIDES for r in rows]
        longest = max(map(len, ids))
        batch = {
            "input_ids": torch.tensor([i + [self.pad] * (longest - len(i)) for i in ids]),
            "attention_mask": torch.tensor([[1] * len(i) + [0] * (longest - len(i)) for i in ids]),
            "completion_mask": torch.tensor([m + [0] * (longest - len(m)) for m in masks]),
        }
        for name in ("ref_chosen_logps", "ref_rejected_logps"):
            if name in rows[0]:
                batch[name] = torch.tensor([r[name] for r in rows])
        return batch
