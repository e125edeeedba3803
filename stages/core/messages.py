"""The two messages that cross a container's boundary: the request of an attempt, and its result, the manifest."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field

from stages.core.artifacts import ArtifactManifest

SCHEMA = 1
"""Version of the request, the manifest and the key. A change makes every key new."""

LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""Names of this machine, which no other one reaches."""


def on_loopback(endpoint: str | None) -> bool:
    """Whether only this machine reaches an endpoint."""
    return endpoint is not None and urlsplit(endpoint).hostname in LOOPBACK


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StoreAddress(_Document):
    """Where the object store is. Credentials never stand here: they come from the environment or a file."""

    bucket: str
    endpoint: str | None = Field(None, description="URL of an S3-compatible store; None for AWS")
    region: str = "us-east-1"
    prefix: str = ""


class Secrets(_Document):
    """What a stage needs and nobody may see: kept out of the request, which is logged. Lies in a file of mode 0600."""

    environment: dict[str, str] = Field(default_factory=dict)
    files: dict[str, str] = Field(
        default_factory=dict, description="{variable: text}: the variable will name a file with that text"
    )


class Lease(_Document):
    """The right to work on a key: one holder at a time, fenced by a growing epoch."""

    key: str
    epoch: int = Field(ge=1)
    holder: str


class InputRef(_Document):
    """An input artifact: which node and key made it, and its manifest."""

    node: str
    key: str
    port: str
    manifest: ArtifactManifest


class CodeRef(_Document):
    """The code that an attempt ran. Recorded with the result, never part of the key."""

    source_digest: str
    lock_digest: str | None = Field(
        default=None,
        description=(
            "of the environment that the launcher ran the stage in: its image's, an engine's, or this installation's"
        ),
    )
    image: str | None = Field(
        default=None, description="name of the image, whose tag is a digest of sources, lock and recipe; None: no image"
    )
    image_digest: str | None = Field(
        default=None, description="as the container engine knows it, where the launcher is told before the start"
    )
    engine_lock_digest: str | None = Field(
        default=None, description="of the environment of an engine that the stage starts beside itself"
    )
    packages_digest: str | None = Field(
        default=None,
        description="of the names and versions that the interpreter really had, looked up by the stage's own process",
    )
    git_commit: str | None = None


class StageRequest(_Document):
    """Everything a container needs to run one attempt."""

    schema_version: int = SCHEMA
    run_id: str
    node: str
    stage: str
    revision: int
    key: str
    lease: Lease
    config: dict[str, Any]
    inputs: dict[str, tuple[InputRef, ...]]
    outputs: dict[str, str] = Field(description="{port: artifact type}")
    expected_facets: dict[str, dict[str, str | int]] = Field(default_factory=dict)
    code: CodeRef
    store: StoreAddress
    replaces: str | None = Field(None, description="ETag of the manifest that a forced rerun replaces")
    rehearses_stop: bool = Field(
        default=False, description="after its first checkpoint the attempt waits until it is asked to stop"
    )


class StoredRequest(_Document):
    """Where a request lies in the store, and what its bytes must be: all that a job needs beside credentials."""

    store: StoreAddress
    object: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Attempt(_Document):
    """When and on what an attempt ran, and what it used."""

    run_id: str
    epoch: int
    started_at: str
    ended_at: str
    wall_seconds: float
    cpu_seconds: float
    peak_rss_bytes: int
    bytes_in: int
    bytes_out: int
    start: str = Field(default="", description="names its folder where a process had begun before under its epoch")
    resumed_from: int | None = Field(None, description="step of the checkpoint it began from")
    machine: dict[str, str | int] = Field(default_factory=dict, description="processor, cores, Python; no host names")


class StageResult(_Document):
    """The manifest: what an attempt published. Its conditional PUT is the one act that makes outputs visible."""

    schema_version: int = SCHEMA
    key: str
    node: str
    stage: str
    revision: int
    config: dict[str, Any]
    identity: dict[str, Any] = Field(description="the configuration fields that entered the key")
    inputs: dict[str, tuple[InputRef, ...]]
    outputs: dict[str, ArtifactManifest]
    stats: dict[str, Any] = Field(default_factory=dict, description="summary numbers for people and reports")
    metrics_object: str | None = Field(None, description="object key of the metric rows (JSON lines)")
    code: CodeRef
    attempt: Attempt
