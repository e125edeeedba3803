"""The `dedup` stage: exact and near duplicates out, by a published recipe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from stages.core.artifacts import ArtifactManifest, Documents
from stages.core.config import Operational, StageConfig
from stages.core.errors import ConfigError
from stages.core.preflight import Problem
from stages.core.resources import Resources
from stages.core.scale import Scale
from stages.core.shrinking import Shrinks
from stages.core.stage import Input, Output, Reading, Stage, output
from stages.dedup import limits
from stages.dedup.bloom_size import filter_bytes
from stages.lib.data.amounts import DEDUPLICATED, corpus, documents, shards

RecipeName = Literal[
    "slimpajama",
    "slimpajama-as-published",
    "dclm",
    "dclm-bff",
    "dclm-suffix-array",
    "the-stack",
    "the-stack-as-published",
]


@dataclass(frozen=True)
class Recipe:
    """The constants of a published recipe. Steps that a recipe does not have are None or False."""

    shingle: Literal["characters", "words", "token set"] = "characters"
    width: int = 13
    """Characters or words in a shingle."""
    permutations: int = 128
    bands: int = 18
    """0: no MinHash."""
    rows: int = 7
    threshold: float = 0.8
    """Jaccard similarity from which two documents count as duplicates."""
    verify: bool = True
    """Whether the real similarity of candidates is computed."""
    exact: bool = True
    """Whether documents of equal content go first."""
    min_characters: int = 0
    short_filter: Literal["paper", "code"] = "paper"
    min_tokens: int = 0
    extremes: bool = False
    """Keep of a cluster every document that is not similar to one kept before it, instead of the first alone."""
    substring_bytes: int | None = None
    """Repeated substrings from this length on go (suffix array)."""
    bloom: bool = False
    """Whether paragraphs and documents then pass the Bloom filter (BFF `old-both`)."""


RECIPES: dict[RecipeName, Recipe] = {
    # Cerebras modelzoo data_processing/slimpajama: 13-grams of characters, 128 permutations, Jaccard 0.8, short filter
    # 200 characters. Upstream's 9 x 13 bands find 0.84 of the pairs and verify none; 18 x 7 verified finds 0.998 at
    # precision 1 (benchmarks/README.md).
    "slimpajama": Recipe(min_characters=200),
    # The same as its code runs: 9 x 13 (datasketch's optimum for 0.8), no verification, and spaces count as characters.
    # Its exact duplicates share all bands, so that it needs no step for them; the result is the same with one.
    "slimpajama-as-published": Recipe(bands=9, rows=13, verify=False, min_characters=200, short_filter="code"),
    # DCLM as the paper of Moxin words it (3.3.1): MinHash, then the Bloom filter. The width of DCLM's MinHash shingles
    # is not in the sources that we hold: words by fives, as FineWeb's MinHash (datatrove).
    "dclm": Recipe(shingle="words", width=5, bloom=True),
    # What DCLM-BASELINE ran: BFF alone, `--remove-type old-both`, n-gram 13, threshold 0.8, fp 0.01
    # (dedup/bff/src/main.rs).
    "dclm-bff": Recipe(bands=0, exact=False, bloom=True),
    # The alternative that DCLM studied: MinHash, then exact substrings by suffix array. 100 bytes are the 50 tokens (of
    # two bytes) of Lee et al. 2022, "Deduplicating Training Data Makes Language Models Better", section 4.1.
    "dclm-suffix-array": Recipe(shingle="words", width=5, substring_bytes=100),
    # codeparrot minhash_deduplication.py, as the-stack-dedup: sets of [A-Za-z_0-9]+ tokens, 256 permutations, 0.85,
    # files under 10 tokens are left alone; 25 x 10 bands put the middle of the S-curve at 0.72, and candidates are
    # verified.
    "the-stack": Recipe("token set", 1, 256, 25, 10, 0.85, min_tokens=10, extremes=True),
    # Upstream's bands (datasketch's optimum for 0.85 and 256), clusters of candidates. Its own clusters depend on the
    # order of a Python set; here they are the connected components.
    "the-stack-as-published": Recipe("token set", 1, 256, 13, 19, 0.85, verify=False, min_tokens=10, extremes=True),
}


BAND_BYTES = 16
"""Spilled for each band of a document: its hash and the document's place."""


class DedupConfig(StageConfig):
    """Which recipe, and departures from it."""

    recipe: RecipeName = Field(default="slimpajama", description="the published recipe (paper 3.3.1, 3.3.2)")
    short_filter: Literal["paper", "code"] | None = Field(
        default=None,
        description=(
            "what counts towards min_characters: 'paper' takes spaces out too (paper 3.3.1), 'code' leaves them in"
        ),
    )
    bands: int | None = Field(default=None, gt=0, description="LSH bands, instead of the recipe's")
    rows: int | None = Field(default=None, gt=0, description="signature values in a band, instead of the recipe's")
    verify: bool | None = Field(
        default=None, description="compute the real Jaccard similarity of candidates, instead of the recipe's"
    )
    threshold: float | None = Field(
        default=None, gt=0, le=1, description="Jaccard similarity of duplicates, instead of the recipe's"
    )
    min_characters: int | None = Field(default=None, ge=0, description="shorter documents go, instead of the recipe's")
    seed: int = Field(default=1, ge=0, lt=1 << 32, description="of the permutations (datasketch's default is 1)")
    substring_megabytes: Annotated[int, Shrinks(wiring=4, shape=4)] = Field(
        default=32,
        gt=0,
        le=1024,
        description="text whose repeated substrings are sought together; memory is some 14 times that",
    )
    partitions: Annotated[int, Shrinks(wiring=2, shape=2)] = Field(
        default=1,
        ge=1,
        le=10_000,
        description=(
            "the corpus is dealt out, shard i to partition i mod so many, and each is deduplicated by itself, with a"
            " Bloom filter of its own (DCLM-BASELINE: 10)"
        ),
    )
    bloom_memory_gib: Annotated[Operational[float], Shrinks(wiring=0.5, shape=0.5)] = Field(
        default=1.0,
        gt=0,
        description=(
            "what the Bloom filters at work at one time may use: as many partitions as fit; one that does not fit is"
            " refused"
        ),
    )
    memory_mib: Annotated[Operational[int], Shrinks(wiring=256, shape=256)] = Field(
        default=512,
        ge=64,
        description="what sorting and merging may use in each process, about; never changes the result",
    )
    workers: Annotated[Operational[int | Literal["ray", "slurm", "kubernetes"]], Shrinks(wiring=2, shape=2)] = Field(
        default=1,
        description=(
            "processes, 'ray': the cluster that RAY_ADDRESS names, or 'slurm', 'kubernetes': arrays of jobs by that"
            " launcher; never changes the result"
        ),
    )

    def resolved(self) -> Recipe:
        """The recipe with this configuration's departures."""
        changes = {
            name: value
            for name in ("short_filter", "bands", "rows", "verify", "threshold", "min_characters")
            if (value := getattr(self, name)) is not None
        }
        return Recipe(**{**RECIPES[self.recipe].__dict__, **changes})

    def problems(self, documents: float, text_bytes: float) -> Iterable[Problem]:
        """What a corpus of this size exceeds."""
        return limits.problems(
            documents, text_bytes, self.partitions, self.bloom_memory_gib if self.resolved().bloom else None
        )

    @model_validator(mode="after")
    def _bands_fit(self) -> DedupConfig:
        recipe = self.resolved()
        if RECIPES[self.recipe].bands == 0 and (self.bands or self.rows):
            raise ValueError(f"recipe {self.recipe} has no MinHash: leave bands and rows unset")
        if recipe.bands * recipe.rows > recipe.permutations:
            raise ValueError(
                f"bands x rows is {recipe.bands} x {recipe.rows}, but the recipe has {recipe.permutations} permutations"
            )
        if isinstance(self.workers, int) and self.workers < 1:
            raise ValueError("workers must be 1 or more, 'ray' or 'slurm'")
        return self


class Dedup(Stage[DedupConfig], env="data", revision=3, reproducible="bits"):
    """Remove short, exact and near-duplicate documents by a published recipe."""

    reads: ClassVar[Mapping[str, Reading]] = {"sources": "shards"}

    sources: Sequence[Input[Documents]]
    documents: Output[Documents] = output()

    @classmethod
    def check_inputs(cls, node: str, config: DedupConfig, inputs: Mapping[str, Sequence[ArtifactManifest]]) -> None:
        documents, text_bytes = (
            sum(float(source.meta.get(name, 0)) for source in inputs["sources"]) for name in ("documents", "text_bytes")
        )
        for problem in config.problems(documents, text_bytes):
            raise ConfigError(problem.line(node))

    @classmethod
    def check_resources(cls, node: str, config: DedupConfig, resources: Resources) -> None:
        if config.resolved().bloom and config.bloom_memory_gib > resources.memory_gib:
            raise ConfigError(
                f"{node}.bloom_memory_gib = {config.bloom_memory_gib:g}, but resources.{node}.memory_gib ="
                f" {resources.memory_gib:g}: lower the one, or raise the other"
            )

    @classmethod
    def scale(cls, config: DedupConfig, inputs: Mapping[str, Sequence[ArtifactManifest]]) -> Scale:
        """The text is read to be signed, compared and written; bands, pairs and hashes are spilled between."""
        recipe, (count, text, stored) = config.resolved(), corpus(inputs["sources"])
        kept = next((share for name, share in DEDUPLICATED.items() if config.recipe.startswith(name)), 1.0)
        filters = filter_bytes(text / config.partitions) if recipe.bloom else 0
        tasks, held = shards(text)
        return Scale(
            outputs={"documents": documents(count * kept, text * kept)},
            work=({"dedup.near": text} if recipe.bands else {})
            | ({"dedup.bloom": text} if recipe.bloom else {})
            | ({"dedup.substrings": text} if recipe.substring_bytes else {}),
            tasks=tasks * (3 + recipe.bloom),
            task_disk=2 * held + (config.memory_mib << 20),
            local=max(filters, min(filters * config.partitions, config.bloom_memory_gib * 2**30)),  # until stored
            task_memory=(config.memory_mib + 300) << 20,
            memory=max(filters, min(filters * config.partitions, config.bloom_memory_gib * 2**30)),
            read=3 * stored + 2 * recipe.bands * BAND_BYTES * count,
            written=2 * recipe.bands * BAND_BYTES * count,
            notes=(f"deduplication keeps {kept:.0%}",),
            refusals=tuple(config.problems(count, text)),
        )

    @classmethod
    def resources(cls, config: DedupConfig) -> Resources:
        cpus = config.workers if isinstance(config.workers, int) else 1
        sorting, filters = cpus * (config.memory_mib + 300) / 1024, config.bloom_memory_gib + cpus * 300 / 1024
        return Resources(cpus=cpus, memory_gib=max(2.0, sorting, filters if config.resolved().bloom else 0.0))
