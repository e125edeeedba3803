"""The artifact types that travel along the edges of the DAG, with the facets that must agree across an edge.

A *facet* is a fact about an artifact that a consumer depends on (the digest of the tokenizer that made the token
ids, say). Facets are small, typed, part of the artifact's content digest, and are compared when a plan is made: a
model trained on one tokenizer never meets shards made with another.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

#: Facets that every two inputs of one node must agree on, whatever their types, when both know the value.
SHARED_FACETS = ("tokenizer_digest", "vocab_size", "chat_template_digest", "architecture")


class Artifact:
    """Base of all artifact types. A subclass names its facets and says what files it holds."""

    facets: ClassVar[frozenset[str]] = frozenset()
    #: `{name of the type: type}`, filled as the types are defined.
    registry: ClassVar[dict[str, type[Artifact]]] = {}

    def __init_subclass__(cls) -> None:
        Artifact.registry[cls.__name__] = cls


class RawFiles(Artifact):
    """A listing of raw source files: `listing.jsonl` (`RawFile` rows), and the files it names by relative path."""


class Documents(Artifact):
    """Cleaned text: `part-NNNNN.parquet` with columns id, text, source, url, license (all strings; see
    `stages.lib.formats.documents`), in a deterministic order."""


class Tokenizer(Artifact):
    """`tokenizer.json` and `tokenizer_config.json`, loadable by `tokenizers` and by transformers."""

    facets = frozenset({"tokenizer_digest", "vocab_size"})


class TokenShards(Artifact):
    """Packed windows of token ids: `shard-NNNNN.bin` (row-major windows) and `index.json` (see
    `stages.lib.formats.shards`).
    """

    facets = frozenset({"tokenizer_digest", "vocab_size", "sequence_length", "dtype"})


class Model(Artifact):
    """An ordinary Hugging Face model folder: config.json, safetensors, tokenizer, generation config, card."""

    facets = frozenset(
        {"architecture", "tokenizer_digest", "vocab_size", "context_length", "dtype", "chat_template_digest"}
    )


class OptimizerState(Artifact):
    """AdamW's moments of a model's weights, float32: `moments*.safetensors`, and `state.json` with what they come from
    (see `stages.lib.training.carried_moments`).
    """

    facets = frozenset({"architecture", "tokenizer_digest", "vocab_size"})


class Conversations(Artifact):
    """Instruction data: `part-NNNNN.parquet` with columns id, messages (list of {role, content}), source, license."""


class Preferences(Artifact):
    """Pairs of answers: `part-NNNNN.parquet` with columns id, prompt, chosen, rejected (each a list of {role, content};
    prompt ends with a user's turn, chosen and rejected are what follows it), source, license."""


class Problems(Artifact):
    """Verifiable problems: `part-NNNNN.parquet` with columns id, problem, answer, solution, source, license (strings;
    solution may be '')."""


class ImageConversations(Artifact):
    """Visual instruction data: `part-NNNNN.jsonl` rows in LLaVA's schema (id, image or none, conversations), and
    `images-NNNNN.zip` (see `stages.lib.vision.conversations`)."""


class ImageSuite(Artifact):
    """Visual benchmarks in the data sets' own files, with `<benchmark>-NNNNN.zip` of their images
    (`stages.lib.vision.benchmarks`).
    """


class VisionTowers(Artifact):
    """Two frozen vision towers as Hugging Face folders, `dino/` and `siglip/`, for one image size."""

    facets = frozenset({"image_size", "patches", "feature_width"})


class ImageFeatures(Artifact):
    """Patch features of every image of an `ImageConversations`: `features-NNNNN.safetensors`, and `index.json`."""

    facets = frozenset({"patches", "feature_width", "images_digest"})


class EvalSuite(Artifact):
    """A local mirror of evaluation data sets in the hub's own schemas: `<org>/<name>/` with README.md and parquet."""


class EvalReport(Artifact):
    """`report.json` (`stages.lib.formats.reports.EvalReport`) and the samples of every task."""


class Completions(Artifact):
    """Programs that a model wrote and nobody has run: `completions.json` and a JSON Lines file for each task
    (`stages.lib.formats.completions`).
    """


class Overlap(Artifact):
    """N-gram overlap of evaluation items with training data: `overlap.json` and the items by data set
    (`stages.lib.formats.overlap`).
    """


class FileEntry(BaseModel):
    """One stored file: of an artifact, of a checkpoint, or of a task's result. Its JSON value (`value`) travels in the
    arguments of tasks; `stages.core.reading` opens it, in any process of any machine.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str = Field(description="POSIX path inside the artifact")
    size: int = Field(ge=0, description="bytes")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    object: str = Field(
        description="object key in the store; an absolute path where the file lies on a local disk only"
    )
    blocks: str = Field(default="", description="CRC32 of each 16 MiB block, 8 hexadecimal digits each; '': not known")
    detail: str = Field(
        default="",
        description=(
            "JSON that a reader needs before it opens the file, parsed by that reader alone; part of no digest, since"
            " the bytes say it too"
        ),
    )

    @property
    def is_local(self) -> bool:
        """Whether the file lies on a local disk only."""
        return self.object.startswith("/")

    def value(self) -> dict[str, Any]:
        """As JSON, for the arguments of a task; `FileEntry.model_validate` reads it."""
        return self.model_dump(mode="json", exclude_defaults=True)


class IndexRef(BaseModel):
    """A page of an index (`stages.core.index`), and what it stands for with all pages below it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    object: str = Field(description="object key in the store")
    digest: str = Field(
        pattern=r"^[0-9a-f]{64}$", description="of path, size and SHA-256 of the files, not of the page"
    )
    files: int = Field(ge=0)
    bytes: int = Field(ge=0, description="of all files")
    pages: int = Field(1, ge=1, description="itself and all below it")


INLINE_FILES = 64
"""An artifact with no more files lists them in its manifest; with more it refers to an index."""


class ArtifactManifest(BaseModel):
    """What one output port of one attempt holds. `digest` covers type, facets and file contents, not locations.

    Which files: `files` themselves when they are few (or the result is one of before there were indexes), else the root
    of an index. A reference to an input (`reference`) leaves `files` out. `Ledger.entries` reads them in every case.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: str
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    facets: dict[str, str | int]
    meta: dict[str, Any] = Field(default_factory=dict, description="statistics for people; not part of the digest")
    files: tuple[FileEntry, ...] = ()
    index: IndexRef | None = None
    left_out: tuple[int, int] | None = Field(
        default=None, description="number and bytes of the files, which stand in the producer's manifest"
    )

    @property
    def count(self) -> int:
        """How many files."""
        return self.index.files if self.index else self.left_out[0] if self.left_out else len(self.files)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        if self.index:
            return self.index.bytes
        return self.left_out[1] if self.left_out else sum(f.size for f in self.files)

    def reference(self) -> ArtifactManifest:
        """The same without its files: what a request, and a result of its consumer, say of an input."""
        if self.index or self.left_out:
            return self
        return self.model_copy(update={"files": (), "left_out": (self.count, self.size)})
