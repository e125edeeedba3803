"""The contract between a stage's author, the control plane and the container that runs the stage.

A stage is a class with typed ports and a frozen configuration:

    class TokenizeConfig(StageConfig):
        sequence_length: int = Field(2048, gt=1, description="tokens in a window (paper 3.4)")
        workers: Operational[int] = Field(1, ge=1, description="processes; never changes the result")

    class Tokenize(Stage[TokenizeConfig], env="data", revision=1):
        '''Pack documents into windows of token ids.'''
        documents: Sequence[Input[Documents]]
        tokenizer: Input[Tokenizer]
        shards: Output[TokenShards] = output()

and `stages/<stage>/run.py` holds `def run(ctx: Context[TokenizeConfig]) -> None`. Nothing else is needed: the
DAG in `stages/pipeline.py` wires instances of such classes, and everything else is derived.
"""

from __future__ import annotations

import enum
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar, dataclass_transform, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field

from stages.core.artifacts import SHARED_FACETS, Artifact, ArtifactManifest

T = TypeVar("T")
A_co = TypeVar("A_co", bound=Artifact, covariant=True)
C_co = TypeVar("C_co", bound="StageConfig", covariant=True)

SCHEMA = 1
"""Version of the request, the manifest and the key. A change makes every key new."""


# --- how a stage ends ---------------------------------------------------------------------------------------------


class ExitClass(enum.StrEnum):
    """How an attempt ended; the value decides what happens next. Only `oom` and `preempted` are retried unasked."""

    OK = "ok"
    CONFIG = "config"  # the user's configuration cannot work
    INPUT = "input"  # the data cannot be used
    INFRA = "infra"  # the store or the disk let the stage down
    OOM = "oom"
    PREEMPTED = "preempted"  # stopped from outside; a checkpoint may be there
    BUG = "bug"

    @property
    def code(self) -> int:
        """The process exit status that carries this class."""
        return _EXIT_CODES[self]

    @classmethod
    def from_code(cls, code: int) -> ExitClass:
        """Map a process exit status back. A signal (negative, or 128 + n) that nobody asked for is `preempted` for
        TERM, INT and HUP, `oom` for KILL is *not* assumed (kill -9 by a person looks the same): it is `preempted`."""
        for exit_class, known in _EXIT_CODES.items():
            if code == known:
                return exit_class
        signal = -code if code < 0 else code - 128
        return cls.PREEMPTED if signal in (1, 2, 9, 15) else cls.BUG

    @property
    def retryable(self) -> bool:
        """Whether the same attempt may be made again without a person changing something."""
        return self in (ExitClass.OOM, ExitClass.PREEMPTED)


_EXIT_CODES = {
    ExitClass.OK: 0,
    ExitClass.BUG: 1,
    ExitClass.CONFIG: 64,
    ExitClass.INPUT: 65,
    ExitClass.INFRA: 69,
    ExitClass.OOM: 71,
    ExitClass.PREEMPTED: 75,
}


class StageError(Exception):
    """An expected failure with one clear line for the user. Raise a subclass, never this."""

    exit_class: ClassVar[ExitClass] = ExitClass.BUG


class ConfigError(StageError):
    """The configuration cannot work: name the key, its value, and what to do."""

    exit_class = ExitClass.CONFIG


class InputError(StageError):
    """The input cannot be used: name the object and the place in it."""

    exit_class = ExitClass.INPUT


class InfraError(StageError):
    """The store, the disk or another service failed: name it."""

    exit_class = ExitClass.INFRA


class Preempted(StageError):
    """The stage was asked to stop and did so at a safe place."""

    exit_class = ExitClass.PREEMPTED


# --- configuration ------------------------------------------------------------------------------------------------


class _OperationalMarker:
    """Marks a configuration field that cannot change the result, and so is no part of the key."""


OPERATIONAL = _OperationalMarker()
Operational = Annotated[T, OPERATIONAL]
"""`workers: Operational[int]`: how the work is done, not what comes out. Never part of a key."""


class StageConfig(BaseModel):
    """Base of every stage's configuration: frozen, unknown keys refused, every field described."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    def identity(self) -> dict[str, Any]:
        """The fields that decide the result, as JSON values, for the key."""
        skip = {name for name, info in type(self).model_fields.items() if any(m is OPERATIONAL for m in info.metadata)}
        return self.model_dump(mode="json", exclude=skip)


class Resources(BaseModel):
    """What one attempt needs. Launchers translate it; it is never part of a key."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cpus: float = Field(default=1, gt=0, description="cores")
    memory_gib: float = Field(default=2, gt=0)
    gpus: int = Field(default=0, ge=0, description="GPUs a node")
    nodes: int = Field(default=1, ge=1)
    processes: int = Field(default=1, ge=1, description="processes a node that work on one model (torchrun); with GPUs, at least one each")
    scratch_gib: float = Field(default=10, gt=0)
    network: Literal["store", "internet"] = Field(default="store", description="what a container may reach: the object store alone, or all")
    material: bool = Field(default=False, description="reads the Python library and packages of the machine that launches it")


@dataclass(frozen=True)
class Work:
    """The work of one attempt, for the cost model: floating-point operations and bytes read."""

    flops: float = 0.0
    bytes: float = 0.0


# --- ports and stages ---------------------------------------------------------------------------------------------


class Input(Generic[A_co]):
    """A place where an artifact of type `A` arrives."""


class Output(Input[A_co]):
    """An output port of one node. It is an `Input` to whoever is wired to it: the type checker checks the wiring."""

    def __init__(self, node: Stage[Any], port: str, type: type[Artifact]) -> None:
        self.node, self.port, self.type = node, port, type

    def __repr__(self) -> str:
        return f"{self.node.name}.{self.port}"


def output(*, init: Literal[False] = False) -> Any:
    """Declare an output port in a stage's class body."""
    return None


@dataclass(frozen=True)
class Port:
    """One port of a stage, read from the class's annotations."""

    name: str
    type: type[Artifact]
    direction: Literal["input", "output"]
    many: bool = False
    optional: bool = False


Facets = Mapping[str, "str | int | None"]
"""Known facet values of an artifact; None or absent where a value is not known before the artifact exists."""


@dataclass_transform(kw_only_default=True, field_specifiers=(output,))
class _Declared:
    """Tells the type checker that the annotations of a stage are the arguments of its constructor: it checks the wiring."""


class Stage(_Declared, Generic[C_co]):
    """A node of the DAG: an instance of a stage class, wired to the outputs of other nodes.

    Class keywords: `env` (folder in containers/), `revision` (raise it when the stage's *meaning* changes: it is part
    of the key), `checkpoints` (whether a broken attempt can resume in the middle).
    """

    name: str

    stage: ClassVar[str]
    env: ClassVar[str]
    revision: ClassVar[int]
    checkpoints: ClassVar[bool]
    config_type: ClassVar[type[StageConfig]]
    ports: ClassVar[dict[str, Port]]
    #: `{"tokens.sequence_length": "sequence_length"}`: facet of an input that must equal a configuration field.
    match: ClassVar[Mapping[str, str]] = {}

    def __init_subclass__(cls, *, env: str, revision: int, checkpoints: bool = False) -> None:
        cls.stage = cls.__module__.split(".")[-2]
        cls.env, cls.revision, cls.checkpoints = env, revision, checkpoints
        cls.config_type = next(
            get_args(base)[0] for base in cls.__orig_bases__ if get_origin(base) is Stage  # type: ignore[attr-defined]
        )
        cls.ports = {}
        for name, hint in typing.get_type_hints(cls).items():
            if (port := _read_port(name, hint)) is not None:
                cls.ports[name] = port

    def __init__(self, *, name: str, **wires: Input[Artifact] | Sequence[Input[Artifact]] | None) -> None:
        self.name = name
        self.wires: dict[str, tuple[Output[Artifact], ...]] = {}
        for port in self.ports.values():
            if port.direction == "output":
                setattr(self, port.name, Output(self, port.name, port.type))
                continue
            given = wires.pop(port.name, None)
            sources = tuple(given) if isinstance(given, Sequence) else (() if given is None else (given,))
            self.wires[port.name] = self._checked(port, sources, isinstance(given, Sequence))
        if wires:
            raise TypeError(f"node {name}: stage {self.stage} has no input {', '.join(sorted(wires))}")

    def _checked(self, port: Port, sources: tuple[Any, ...], is_list: bool) -> tuple[Output[Artifact], ...]:
        where = f"node {self.name}, input {port.name}"
        if is_list != port.many and sources:
            raise TypeError(f"{where}: expects {'a list of outputs' if port.many else 'one output'}")
        if not sources and not port.optional:
            raise TypeError(f"{where}: nothing is wired to it, and it is required")
        for source in sources:
            if not isinstance(source, Output):
                raise TypeError(f"{where}: {source!r} is not an output of a node")
            if not issubclass(source.type, port.type):
                raise TypeError(f"{where}: expects {port.type.__name__}, but {source!r} is {source.type.__name__}")
        return sources

    @property
    def parents(self) -> tuple[str, ...]:
        """Names of the nodes this one reads from, each once, in port order."""
        return tuple(dict.fromkeys(out.node.name for sources in self.wires.values() for out in sources))

    @classmethod
    def facets(cls, config: Any, inputs: Mapping[str, Sequence[Facets]]) -> Mapping[str, Facets]:
        """What is known of the outputs' facets before the stage runs: `{port: facets}`. Stages override this."""
        return {}

    @classmethod
    def interpreter(cls, config: Any) -> str | None:
        """The engine (`containers/<engine>/`) in whose own Python an attempt runs, MOXIN_<ENGINE>_PYTHON; None: where it was started."""
        return None

    @classmethod
    def resources(cls, config: Any) -> Resources:
        """What an attempt needs. Stages override this; a profile may too."""
        return Resources()

    @classmethod
    def work(cls, config: Any, inputs: Mapping[str, Sequence[ArtifactManifest]]) -> Work:
        """How much work an attempt is, for `moxin plan`. Stages with a known formula override this."""
        return Work(bytes=float(sum(m.size for many in inputs.values() for m in many)))

    @classmethod
    def check_facets(cls, node: str, config: Any, inputs: Mapping[str, Sequence[tuple[str, Facets]]]) -> None:
        """Raise `ConfigError` when two inputs, or an input and the configuration, disagree on a facet.

        inputs: `{port: [(name of the producing node, its facets)]}`. Unknown values are not compared.
        """
        seen: dict[str, tuple[str, str | int]] = {}
        for many in inputs.values():
            for producer, facets in many:
                for name in SHARED_FACETS:
                    value = facets.get(name)
                    if value is None:
                        continue
                    other = seen.setdefault(name, (producer, value))
                    if other[1] != value:
                        raise ConfigError(
                            f"node {node}: its inputs disagree on {name}: {other[0]} has {other[1]}, "
                            f"{producer} has {value}; wire both to the same origin"
                        )
        for path, key in cls.match.items():
            port, _, name = path.partition(".")
            for producer, facets in inputs.get(port, ()):
                value, wanted = facets.get(name), getattr(config, key)
                if value is not None and wanted is not None and value != wanted:
                    raise ConfigError(
                        f"node {node}: {key} is {wanted}, but its input {port} from {producer} has {name} {value}; "
                        f"set {node}.{key} = {value}, or change {producer}"
                    )


def _read_port(name: str, hint: Any) -> Port | None:
    """Read one annotation: `Input[A]`, `Input[A] | None`, `Sequence[Input[A]]` or `Output[A]`; None if no port."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Output:
        return Port(name, args[0], "output")
    if origin is Input:
        return Port(name, args[0], "input")
    if origin is not None and isinstance(origin, type) and issubclass(origin, Sequence):
        inner = _read_port(name, args[0])
        return None if inner is None else Port(name, inner.type, "input", many=True)
    if type(None) in args:
        inner = _read_port(name, next(a for a in args if a is not type(None)))
        return None if inner is None else Port(name, inner.type, "input", inner.many, optional=True)
    return None


# --- the two documents that cross the container's boundary ----------------------------------------------------------


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
    files: dict[str, str] = Field(default_factory=dict, description="{variable: text}: the variable will name a file with that text")


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
    lock_digest: str | None = None
    image_digest: str | None = None
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


# --- what a stage's run() is given --------------------------------------------------------------------------------


@dataclass(frozen=True)
class LocalArtifact:
    """An input, staged on local disk. Treat `path` as read-only: its files are shared with other stages."""

    path: Any  # pathlib.Path
    manifest: ArtifactManifest
    node: str

    @property
    def facets(self) -> dict[str, str | int]:
        """The artifact's facets."""
        return self.manifest.facets

    @property
    def meta(self) -> dict[str, Any]:
        """The producer's statistics."""
        return self.manifest.meta

    def files(self, suffix: str = "") -> list[Any]:
        """Paths of the artifact's files in name order, optionally only those that end in `suffix`."""
        return [self.path / f.path for f in sorted(self.manifest.files, key=lambda f: f.path) if f.path.endswith(suffix)]


class Checkpoints(typing.Protocol):
    """Mid-stage checkpoints of the key being worked on."""

    def save(self, step: int, directory: Any) -> None:
        """Publish the files under `directory` as the checkpoint of `step`. Atomic: torn uploads are invisible."""

    def upload(self, step: int, directory: Any) -> list[dict[str, Any]]:
        """Store the files under `directory` as this process's part of a checkpoint; nothing is visible yet. Returns what
        `commit` must be told. For a stage of several processes; file names must differ among them."""
        ...

    def commit(self, step: int, parts: Sequence[dict[str, Any]]) -> None:
        """Publish the checkpoint of `step` from what all processes uploaded. Called by the first process alone."""

    def latest(self) -> tuple[int, Any] | None:
        """Step and local folder of the newest complete checkpoint of this key, or None."""


class Context(typing.Protocol[C_co]):
    """Everything a stage may touch. The runtime implements it; tests use `stages.core.testing.LocalContext`."""

    @property
    def config(self) -> C_co:
        """The validated configuration."""
        ...

    @property
    def node(self) -> str:
        """Name of the node being run."""
        ...

    @property
    def scratch(self) -> Any:
        """A folder for temporary files (`pathlib.Path`), removed afterwards."""
        ...

    @property
    def checkpoints(self) -> Checkpoints:
        """Mid-stage checkpoints."""
        ...

    @property
    def stopping(self) -> bool:
        """True once the stage was asked to stop: save a checkpoint and raise `Preempted`."""
        ...

    def input(self, port: str) -> LocalArtifact:
        """The artifact at a single input port. Raises KeyError when nothing is wired to it."""
        ...

    def inputs(self, port: str) -> list[LocalArtifact]:
        """The artifacts at an input port, in wiring order; empty for an optional port left open."""
        ...

    def output(self, port: str) -> Any:
        """The empty folder (`pathlib.Path`) to write an output's files into."""
        ...

    def describe(self, port: str, *, facets: Mapping[str, str | int] | None = None, meta: Mapping[str, Any] | None = None) -> None:
        """State an output's facets (all that its type names) and statistics for people."""
        ...

    def stat(self, **values: Any) -> None:
        """Add summary numbers (JSON values) to the manifest, for `moxin show` and the report."""
        ...

    def metric(self, step: int, **values: float) -> None:
        """One row of a time series (loss, learning rate, ...), streamed to the UI and kept with the result."""
        ...

    def progress(self, done: float, total: float | None = None, unit: str = "") -> None:
        """How far the stage is. Cheap: call it freely."""
        ...

    def log(self, message: str, level: Literal["debug", "info", "warning", "error"] = "info") -> None:
        """One line for people."""
        ...

    def array(self, jobs: Any, tasks: int, cpus: float, memory_gib: float) -> None:
        """Ask the launcher to run the jobs of a file as an array, one task needing so much; `stages/data/arrays.py` says how it answers."""
        ...
