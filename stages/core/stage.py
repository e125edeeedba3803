"""A stage: a class with typed ports and a frozen configuration, from which everything else about it is derived.

    class TokenizeConfig(StageConfig):
        sequence_length: int = Field(2048, gt=1, description="tokens in a window (paper 3.4)")
        workers: Operational[int] = Field(1, ge=1, description="processes; never changes the result")

    class Tokenize(Stage[TokenizeConfig], env="data", revision=1):
        '''Pack documents into windows of token ids.'''
        documents: Sequence[Input[Documents]]
        tokenizer: Input[Tokenizer]
        shards: Output[TokenShards] = output()

and `stages/<stage>/run.py` holds `def run(ctx: Context[TokenizeConfig]) -> None`. Nothing else is needed: the
DAG in `stages/pipeline.py` wires instances of such classes.
"""

from __future__ import annotations

import copy
import typing
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, Self, TypeVar, dataclass_transform, get_args, get_origin

from stages.core.artifacts import SHARED_FACETS, Artifact, ArtifactManifest
from stages.core.config import StageConfig
from stages.core.errors import ConfigError
from stages.core.preflight import PreflightContext, Probe, Problem
from stages.core.resources import Measuring, Processes, Resources, Work
from stages.core.scale import Scale

A_co = TypeVar("A_co", bound=Artifact, covariant=True)
C_co = TypeVar("C_co", bound=StageConfig, covariant=True)


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


Reproducible = Literal["bits", "same hardware", "no"]
"""'bits': the same files on any machine. 'same hardware': the same files on the same processor (or GPU) with the same
number of processes and threads, since sums of floats depend on their order. 'no': nothing is promised.
"""

Reading = Literal["whole", "shards", "stream"]
"""How a stage reads an input. 'whole': staged in to local disk before it runs (a model, a tokenizer). 'shards': its
files are listed, and the task that works on one fetches it. 'stream': read by ranges.
"""

Facets = Mapping[str, "str | int | None"]
"""Known facet values of an artifact; None or absent where a value is not known before the artifact exists."""


@dataclass_transform(kw_only_default=True, field_specifiers=(output,))
class _Declared:
    """Tells the type checker that the annotations of a stage are the arguments of its constructor: it checks the
    wiring.
    """


class Stage(_Declared, Generic[C_co]):
    """A node of the DAG: an instance of a stage class, wired to the outputs of other nodes.

    Class keywords: `env` (folder in containers/), `revision` (raise it when the stage's *meaning* changes: it is part
    of the key), `checkpoints` (whether a broken attempt can resume in the middle), `reproducible` (what a second run of
    the same key, code and locked packages gives: see `Reproducible`).
    """

    name: str

    stage: ClassVar[str]
    env: ClassVar[str]
    revision: ClassVar[int]
    checkpoints: ClassVar[bool]
    reproducible: ClassVar[Reproducible]
    config_type: ClassVar[type[StageConfig]]
    ports: ClassVar[dict[str, Port]]
    #: `{"tokens.sequence_length": "sequence_length"}`: facet of an input that must equal a configuration field.
    match: ClassVar[Mapping[str, str]] = {}
    #: why a plan has no hours for it, where it has none
    untimed: ClassVar[str] = "no rate of it was measured"
    #: `{"documents": "shards"}`: how an input port is read; 'whole' where nothing is said.
    reads: ClassVar[Mapping[str, Reading]] = {}

    def __init_subclass__(
        cls, *, env: str, revision: int, checkpoints: bool = False, reproducible: Reproducible = "no"
    ) -> None:
        cls.stage = cls.__module__.split(".")[-2]
        cls.env, cls.revision, cls.checkpoints, cls.reproducible = env, revision, checkpoints, reproducible
        bases: tuple[Any, ...] = getattr(cls, "__orig_bases__", ())
        cls.config_type = next(get_args(base)[0] for base in bases if get_origin(base) is Stage)
        cls.ports = {}
        for name, hint in typing.get_type_hints(cls).items():
            if (port := _read_port(name, hint)) is not None:
                cls.ports[name] = port
        if unknown := sorted(cls.reads.keys() - {p.name for p in cls.ports.values() if p.direction == "input"}):
            raise TypeError(f"stage {cls.stage}: reads names no input port: {', '.join(unknown)}")

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
    def unread(cls, config: Any) -> Collection[str]:
        """Input ports that this configuration does not read. Nothing there is waited for, staged in, or part of the
        key.
        """
        return ()

    @classmethod
    def unwritten(cls, config: Any) -> Mapping[str, str]:
        """Output ports that this configuration leaves out, each with the setting that would have it written:
        `{"moments": "export_moments = true"}`. Who reads one is refused when a plan is made.
        """
        return {}

    @classmethod
    def outputs(cls, config: Any) -> dict[str, str]:
        """The output ports that this configuration writes, with the names of their types."""
        left_out = cls.unwritten(config)
        ports = (port for port in cls.ports.values() if port.direction == "output" and port.name not in left_out)
        return {port.name: port.type.__name__ for port in ports}

    def under(self, config: Any) -> Self:
        """This node as a configuration wires it: without what it does not read."""
        if not (unread := set(self.unread(config))):
            return self
        if unknown := sorted(unread - self.wires.keys()):
            raise TypeError(f"stage {self.stage} has no input {', '.join(unknown)}")
        node = copy.copy(self)
        node.wires = {port: () if port in unread else sources for port, sources in self.wires.items()}
        return node

    def given(self) -> Self:
        """This node as one whose result is given: it reads nothing."""
        node = copy.copy(self)
        node.wires = dict.fromkeys(self.wires, ())
        return node

    def preflight(self, config: Any, context: PreflightContext) -> Iterable[Problem]:
        """What will stop this node, as far as it can be known without running: stages/core/preflight.py has the common
        cases.
        """
        return ()

    def probes(self, configs: Mapping[str, Any]) -> Iterable[Probe]:
        """The sources outside that this node reads. configs: of all nodes, by name."""
        return ()

    @classmethod
    def facets(cls, config: Any, inputs: Mapping[str, Sequence[Facets]]) -> Mapping[str, Facets]:
        """What is known of the outputs' facets before the stage runs: `{port: facets}`. Stages override this."""
        return {}

    @classmethod
    def interpreter(cls, config: Any) -> str | None:
        """The engine (`containers/<engine>/`) in whose own Python an attempt runs, MOXIN_<ENGINE>_PYTHON; None: where
        it was started.
        """
        return None

    @classmethod
    def processes(cls, config: Any) -> Processes:
        """How the processes of an attempt come to be. Stages that train on several GPUs override this."""
        return Processes.SINGLE

    @classmethod
    def resources(cls, config: Any) -> Resources:
        """What an attempt needs. Stages override this; a profile may too."""
        return Resources()

    @classmethod
    def resumes(cls, config: Any) -> str:
        """Where a broken attempt goes on from, in a few words, for `moxin plan`."""
        if not cls.checkpoints:
            return "its beginning"
        every = getattr(config, "checkpoint_every", None)
        return "its newest checkpoint" if every is None else f"its newest checkpoint, one every {every} steps"

    @classmethod
    def check_resources(cls, node: str, config: Any, resources: Resources) -> None:
        """Raise `ConfigError` when so many processes cannot share the work evenly, or are too few for it. Called when a
        plan is made.
        """

    @classmethod
    def check_inputs(cls, node: str, config: Any, inputs: Mapping[str, Sequence[ArtifactManifest]]) -> None:
        """Raise `ConfigError` when the stage cannot work on these inputs, as their manifests tell. Called when a plan
        is made, of a node that has no result.
        """

    @classmethod
    def work(cls, config: Any, inputs: Mapping[str, Sequence[ArtifactManifest]]) -> Work:
        """How much work an attempt is, for `moxin plan`. Stages with a known formula override this."""
        return Work(bytes=float(sum(m.size for many in inputs.values() for m in many)))

    @classmethod
    def scale(cls, config: Any, inputs: Mapping[str, Sequence[ArtifactManifest]]) -> Scale:
        """How large an attempt is: outputs, tasks, disk, memory, what it reads (`stages.core.scale`). Data stages
        override this. Raises Unknown.
        """
        return Scale()

    @classmethod
    def measuring(cls, config: Any, inputs: Mapping[str, Sequence[ArtifactManifest]]) -> Measuring | None:
        """What it takes to measure what the stage made; None: it measures nothing, or within its training."""
        return None

    @classmethod
    def smaller(cls, config: Any) -> Any | None:
        """The configuration to try again with after running out of memory: less at one time, under the same key. None:
        there is none.
        """
        return None

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
                value, configured = facets.get(name), getattr(config, key)
                if value is not None and configured is not None and value != configured:
                    raise ConfigError(
                        f"node {node}: {key} is {configured}, but its input {port} from {producer} has {name} {value}; "
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
