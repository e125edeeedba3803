"""The `probe_tokenizer` stage: its digest depends on the documents, and is known only after it ran."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import Field

from stages.core.artifacts import Documents, Tokenizer
from stages.core.config import StageConfig
from stages.core.stage import Facets, Input, Output, Stage, output


class VocabularyConfig(StageConfig):
    """The size of the vocabulary."""

    vocab_size: int = Field(default=100, gt=0, description="entries")


class Vocabulary(Stage[VocabularyConfig], env="data", revision=1):
    """Make a vocabulary."""

    documents: Sequence[Input[Documents]]
    tokenizer: Output[Tokenizer] = output()

    @classmethod
    def facets(cls, config: VocabularyConfig, inputs: Mapping[str, Sequence[Facets]]) -> Mapping[str, Facets]:
        return {"tokenizer": {"vocab_size": config.vocab_size}}
