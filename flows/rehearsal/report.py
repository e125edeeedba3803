"""What a rehearsal found: JSON in the store, a page and a table for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flows.store_garbage import REHEARSALS
from stages.core.errors import InputError
from stages.core.keys import canonical_json, sha256
from stages.core.messages import StoreAddress
from stages.core.shrinking import LEVELS, Level
from stages.core.store import Store

FOLDER = REHEARSALS
"""Below the store's prefix, and below the state folder: a folder for each profile and level."""

REFUSED = "Refused"
"""Name of the state of a rehearsal that did not begin, because of what it was asked to do."""

State = Literal["passed", "failed", "out of reach", "not reached"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Fault(_Record):
    """What stands in a node's way, with what to do about it."""

    cause: str
    remedy: str = ""

    @property
    def line(self) -> str:
        """For people."""
        return self.cause + (f": {self.remedy}" if self.remedy else "")


class Checkpointing(_Record):
    """What the checkpoints of a training took, the most of each: bytes and seconds of its first process."""

    bytes: float = 0.0
    pause: float = 0.0
    """In which no step was taken."""
    disk: float = 0.0
    """Until its files were written."""
    store: float = 0.0
    """Until they were stored."""
    read_bytes: float = 0.0
    read: float = 0.0
    """Until one was read and loaded; 0: none was."""


class TaskTime(_Record):
    """What one task of an evaluation took, and how much it asked (statistic `parts`)."""

    seconds: float
    cpu_seconds: float
    documents: int = Field(gt=0)
    of: int
    """Documents of its data sets."""
    limit: int | None
    """Documents of each data set at most."""
    answers: int
    """That were written; 0: it reads only."""
    new_tokens: int | None
    """Of an answer at most; None: as the harness says, or none is written."""


class Measured(_Record):
    """What an attempt used, of its manifest."""

    seconds: float
    cpu_seconds: float
    peak_memory_bytes: int
    """Of the stage's own processes on one machine."""
    bytes_in: int
    bytes_out: int
    steps: int = 0
    """Of a training."""
    tokens_per_second: tuple[float, float, float] | None = None
    """Least, middle and most of the training's steps but the first."""
    step_seconds: tuple[float, float, float] | None = None
    """Least, middle and most, of the same steps."""
    mean_step: tuple[float, float] | None = None
    """Seconds, and processor seconds of its first process (0: not told), of the mean of all its steps, by the same."""
    step_processor_seconds: float | None = None
    """Of its first process: the middle one."""
    steps_here: int = 0
    """Steps of this attempt; others were an attempt's that was stopped."""
    loader_tokens_per_second: float | None = None
    """That the data of steps was made at, beside them."""
    checkpoints: Checkpointing | None = None
    measuring: float = 0.0
    """FLOPs that measuring the model took, beside the training."""
    measuring_written: float = 0.0
    """Of these, of what was written."""
    measuring_seconds: tuple[float, float] | None = None
    """Seconds and processor seconds that measuring a model took, without loading it (statistic `measuring`)."""
    writing_seconds: tuple[float, float] | None = None
    """Of these, of what was written."""
    once: tuple[float, float] = (0.0, 0.0)
    """Seconds and processor seconds of what is done once a machine: kernels that were compiled."""
    parts: Mapping[str, TaskTime] = {}
    """Of an evaluation."""
    response_tokens: float = 0.0
    """Of all responses that it learned from; 0: there were none, or nobody counted."""


class Forecast(_Record):
    """What the real run of a node takes, by what was measured: from, likely, to."""

    seconds: tuple[float, float, float]
    gpu_hours: float = 0.0
    core_hours: float = 0.0
    dollars: tuple[float, float, float] = (0.0, 0.0, 0.0)
    basis: str
    """What it rests on, in one phrase."""
    pauses: float = 0.0
    """Seconds of these in which checkpoints keep steps from being taken."""
    resume: float = 0.0
    """Seconds until a training that broke off takes its next step; 0: not measured."""
    step: float = 0.0
    """Seconds of a step, with the real batch; 0: not measured."""
    last_checkpoint: tuple[float, float, float] | None = None
    """Bytes of one machine, seconds until they are on its disk, and from there in the store."""

    @property
    def stop(self) -> float:
        """Seconds from being asked to stop until the last checkpoint is stored, but for the commit; 0: not measured."""
        return self.step + self.last_checkpoint[1] + self.last_checkpoint[2] if self.last_checkpoint else 0.0


class NodeReport(_Record):
    """What became of one node."""

    node: str
    stage: str
    state: State
    why: str = ""
    """The first line of the error, or what it lacks."""
    remedy: str = ""
    log: str = ""
    """How to see its log."""
    faults: tuple[Fault, ...] = ()
    """What was known before it began."""
    stand_ins: tuple[str, ...] = ()
    """Where it was not run as the profile says."""
    resumed: str = ""
    """What came of the forced stop."""
    unlike: bool = False
    """Whether its numbers say nothing of the real machines."""
    ranks: int = 1
    """Processes that worked together."""
    unit: str = ""
    units: float = 0.0
    """How much work it was (`flows.rehearsal.forecast`); 0: not known."""
    read_bytes: float = 0.0
    """Of its inputs."""
    outputs: Mapping[str, Mapping[str, float]] = {}
    """What they hold, by port (`flows.rehearsal.growth`)."""
    asked: float = 0.0
    """How many times more the profile's own settings ask for; 0: no more."""
    memory_bytes: int = 0
    """What the profile gives it on one machine."""
    measured: Measured | None = None
    forecast: Forecast | None = None


class RehearsalReport(_Record):
    """One rehearsal."""

    schema_version: int = 1
    profile: str
    level: Level
    at: str
    profile_digest: str
    code: Mapping[str, str] = Field(description="{stage: digest of its source}")
    machine: str = ""
    opened: tuple[str, ...] = ()
    """Sources that gave a row."""
    faults: tuple[Fault, ...] = ()
    """What belongs to no node."""
    nodes: tuple[NodeReport, ...] = ()

    @property
    def failed(self) -> list[NodeReport]:
        """Nodes that would break the real run."""
        return [node for node in self.nodes if node.state == "failed"]

    @property
    def ok(self) -> bool:
        """Whether nothing failed."""
        return not self.failed and not self.faults

    def summary(self) -> str:
        """One line."""
        counts = {state: sum(node.state == state for node in self.nodes) for state in ORDER}
        text = ", ".join(f"{count} {state}" for state, count in counts.items() if count) or "no node"
        return f"{self.profile}, {self.level}: {text}" + ("" if not self.faults else f"; {self.faults[0].line}")

    def rows(self) -> list[dict[str, str]]:
        """As a table for the terminal."""
        return [
            {
                "node": node.node,
                "state": node.state,
                "time": f"{node.measured.seconds:.0f} s" if node.measured else "",
                "memory": f"{node.measured.peak_memory_bytes / 2**30:.2f} GiB" if node.measured else "",
                "what": "; ".join(
                    part
                    for part in (node.why, node.remedy and f"do: {node.remedy}", node.resumed, *node.stand_ins)
                    if part
                ),
            }
            for node in self.nodes
        ]


ORDER: tuple[State, ...] = ("passed", "failed", "out of reach", "not reached")


def profile_digest(configs: Mapping[str, BaseModel], resources: Mapping[str, BaseModel]) -> str:
    """What a rehearsal is of: every setting and resource of every node."""
    values = {
        name: [config.model_dump(mode="json"), resources[name].model_dump(mode="json")]
        for name, config in sorted(configs.items())
    }
    return sha256(canonical_json(values))


def name_of(profile: str, level: Level) -> str:
    """What the rehearsal of a profile is called."""
    return f"{profile}-{level}"


def address(store: StoreAddress, profile: str, level: Level) -> StoreAddress:
    """The part of the store that the rehearsals of a profile have to themselves."""
    prefix = f"{store.prefix.rstrip('/')}/" if store.prefix else ""
    return store.model_copy(update={"prefix": f"{prefix}{FOLDER}/{name_of(profile, level)}/"})


def _object(profile: str, level: Level) -> str:
    return f"{FOLDER}/{name_of(profile, level)}/report.json"


def write(store: Store, report: RehearsalReport) -> None:
    """Keep a report: the last one of its profile and level."""
    store.put(_object(report.profile, report.level), report.model_dump_json(indent=1).encode())


def read_all(store: Store, profile: str) -> dict[Level, RehearsalReport]:
    """The last report of each level that there is one of."""
    return {level: one for level in LEVELS if (one := read(store, profile, level)) is not None}


def read(store: Store, profile: str, level: Level) -> RehearsalReport | None:
    """The last report; None: there is none. Raises InputError for one that cannot be read."""
    stored = store.get(_object(profile, level))
    if stored is None:
        return None
    try:
        return RehearsalReport.model_validate_json(stored[0])
    except ValidationError as error:
        raise InputError(f"{_object(profile, level)} cannot be read: {str(error).splitlines()[0]}") from error


def first_line(text: str) -> str:
    """Of an error of several lines."""
    return text.strip().partition("\n")[0]


def lacking(parents: Sequence[str]) -> str:
    """Why a node was not reached."""
    return f"it needs {', '.join(parents)}"
