"""The `dedup` stage: exact and near duplicates out, by one of three published recipes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field, model_validator

from stages.core.artifacts import Documents
from stages.core.contracts import Input, Output, Resources, Stage, StageConfig, output

RecipeName = Literal["slimpajama", "dclm", "the-stack"]


@dataclass(frozen=True)
class Recipe:
    """The constants of a published recipe, and where each was read."""

    shingle: Literal["characters", "words", "token set"]
    width: int
    """Characters or words in a shingle."""
    permutations: int
    bands: int
    rows: int
    threshold: float
    """Jaccard similarity from which two documents count as duplicates."""
    min_characters: int
    min_tokens: int
    bloom: bool
    """Whether paragraphs and documents then pass the Bloom filter (BFF `old-both`)."""


RECIPES: dict[RecipeName, Recipe] = {
    # Cerebras modelzoo data_processing/slimpajama: 13-grams of characters, 128 permutations, Jaccard 0.8, short filter
    # 200 characters. Upstream's 9 x 13 bands find 0.84 of the pairs and verify none; 18 x 7 verified finds 0.998 at
    # precision 1 (facts/data.md 2). Both are settings.
    "slimpajama": Recipe("characters", 13, 128, 18, 7, 0.8, 200, 0, False),
    # DCLM: MinHash, and BFF `--remove-type old-both`, n-gram 13, threshold 0.8, fp 0.01 (bff.rs). The width of its
    # MinHash shingles is not in the sources that we hold: words by fives, as FineWeb's MinHash (datatrove).
    "dclm": Recipe("words", 5, 128, 18, 7, 0.8, 0, 0, True),
    # codeparrot minhash_deduplication.py, as the-stack-dedup: sets of [A-Za-z_0-9]+ tokens, 256 permutations, 0.85,
    # files under 10 tokens are left alone; 25 x 10 bands put the middle of the S-curve at 0.72.
    "the-stack": Recipe("token set", 1, 256, 25, 10, 0.85, 0, 10, False),
}


class DedupConfig(StageConfig):
    """Which recipe, and departures from it."""

    recipe: RecipeName = Field(default="slimpajama", description="the published recipe (paper 3.3.1, 3.3.2)")
    short_filter: Literal["paper", "code"] = Field(
        default="paper",
        description="what counts towards min_characters: 'paper' takes spaces out too (paper 3.3.1), 'code' leaves them in",
    )
    bands: int | None = Field(default=None, gt=0, description="LSH bands; SlimPajama's code has 9")
    rows: int | None = Field(default=None, gt=0, description="signature values in a band; SlimPajama's code has 13")
    verify: bool = Field(default=True, description="compute the real Jaccard similarity of candidates; SlimPajama's code does not")
    threshold: float | None = Field(default=None, gt=0, le=1, description="Jaccard similarity of duplicates, instead of the recipe's")
    min_characters: int | None = Field(default=None, ge=0, description="shorter documents go, instead of the recipe's")
    seed: int = Field(default=1, description="of the permutations (datasketch's default is 1)")

    @model_validator(mode="after")
    def _bands_fit(self) -> DedupConfig:
        recipe = RECIPES[self.recipe]
        bands, rows = self.bands or recipe.bands, self.rows or recipe.rows
        if bands * rows > recipe.permutations:
            raise ValueError(f"bands x rows is {bands} x {rows}, but the recipe has {recipe.permutations} permutations")
        return self


class Dedup(Stage[DedupConfig], env="data", revision=1):
    """Remove short, exact and near-duplicate documents by a published recipe."""

    sources: Sequence[Input[Documents]]
    documents: Output[Documents] = output()

    @classmethod
    def resources(cls, config: DedupConfig) -> Resources:
        return Resources(cpus=1, memory_gib=4)
