"""How large each node's work is: bytes, local disk, memory, tasks, store requests, core-hours.

A stage says how its inputs become outputs, in which pieces and at which rates (`Stage.scale`); rates are in
infra/rates.toml, and what raw sources hold in infra/data_sets.toml. Amounts travel along the edges of the DAG, so that
a node far from its sources has numbers before anything has run. What is not known is said, not guessed.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import Any

from flows.data_files import DATA
from stages.core.artifacts import ArtifactManifest
from stages.core.graph import Node
from stages.core.preflight import Problem
from stages.core.resources import Resources
from stages.core.scale import Amounts, Scale, Unknown

RATES, DATA_SETS = DATA / "infra" / "rates.toml", DATA / "infra" / "data_sets.toml"
BLOCK = 16 << 20
"""Bytes of a request that reads or writes (`stages.core.store.PART_BYTES`)."""
NETWORK = 1.25e9
"""Bytes a second between a machine and the store: 10 Gbit/s. Declared."""
DISK = 1e9
"""Bytes a second that a machine writes to its local disk: NVMe. Declared."""
TASK_REQUESTS = 6
"""Of a task beside its data: its receipt looked for and written, its inputs' index, its output's end. Declared."""
ROWS_ALONE = ("rows",)
"""The rates of a stage that says nothing of its work, where its rows are known."""
MOST_TASKS = 1_000_000
"""Tasks beyond which a plan warns: a receipt and a result of each are listed. Declared."""
GIB = 2**30


@dataclass(frozen=True)
class NodeScale:
    """The size of one node's work. Bytes, counts, seconds."""

    bytes_in: float = 0.0
    bytes_out: float = 0.0
    outside: float = 0.0
    spilled: float = 0.0
    disk: float = 0.0
    """Local disk at its fullest, on one machine."""
    memory: float = 0.0
    tasks: float = 0.0
    requests: float = 0.0
    core_seconds: float = 0.0
    seconds: float = 0.0
    """By the clock on the node's own resources: its cores, or the network where that takes longer."""
    rates: tuple[str, ...] = ()
    unknown: str = ""
    """What the sums would need and is not known; "": they are whole."""
    unmeasured: str = ""
    """The input whose bytes are not known; "": those of all are."""
    notes: tuple[str, ...] = ()
    refusals: tuple[Problem, ...] = ()
    outputs: Mapping[str, Amounts] = field(default_factory=dict[str, Amounts])

    @property
    def moved(self) -> float:
        """Bytes over the network."""
        return self.bytes_in + self.outside + self.bytes_out + self.spilled

    def row(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    def text(self) -> str:
        """For the plan's table."""
        moved = self.bytes_in + self.outside
        if not moved and not self.bytes_out:
            return ""
        read = "over " * bool(self.unknown) + size(moved) if moved else "?" if self.unknown else size(0)
        sides = f"{read} -> {size(self.bytes_out)}" if self.bytes_out else f"reads {read}"
        return f"{sides}, disk {'?' if self.unknown else size(self.disk)}"


def size(count: float) -> str:
    """Bytes in the unit that people would name."""
    for unit, one in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= one:
            return f"{count / one:,.{1 if count < 100 * one else 0}f} {unit}"
    return f"{count / 1e3:,.0f} kB"


@lru_cache(maxsize=1)
def rates() -> dict[str, dict[str, Any]]:
    """Of infra/rates.toml: {name: {rate, unit, source}}."""
    return tomllib.loads(RATES.read_text(encoding="utf-8"))


@lru_cache(maxsize=1)
def data_sets() -> dict[str, Any]:
    """Of infra/data_sets.toml: what is known of sources before anything has run."""
    return tomllib.loads(DATA_SETS.read_text(encoding="utf-8"))


def expected(amounts: Mapping[str, Any]) -> ArtifactManifest:
    """An artifact that is not there yet: no files, and what is known of it."""
    return ArtifactManifest(type="", digest="0" * 64, facets={}, meta=dict(amounts), files=())


def held(manifest: ArtifactManifest) -> dict[str, Any]:
    """What an artifact holds: numbers of its statistics, and its size, also where its files stand elsewhere."""
    numbers = {name: value for name, value in manifest.meta.items() if isinstance(value, int | float)}
    return {"bytes": manifest.size, "files": manifest.count} | numbers if manifest.count else dict(manifest.meta)


def of_node(
    node: Node,
    config: Any,
    resources: Resources,
    inputs: Mapping[str, Sequence[ArtifactManifest]],
    known: Mapping[str, Any],
) -> NodeScale:
    """The scale of one node. known: what its configuration fixes of its outputs (`rows`, `parameters`)."""
    try:
        scale = node.scale(config, inputs)
        unknown = ""
    except Unknown as error:
        scale, unknown = Scale(), f"the {error} is not known"
    outputs = {port: dict(scale.outputs.get(port, {})) for port in node.outputs(config)}
    for port, type_name in node.outputs(config).items():
        if not outputs[port]:
            outputs[port] = _fixed(type_name, config, port, known)
    reads = [(port, held(one)) for port, many in inputs.items() for one in many]
    staged = [amounts for port, amounts in reads if node.reads.get(port, "whole") == "whole"]
    unmeasured = min((port for port, amounts in reads if "bytes" not in amounts), default="")
    if unmeasured:
        unknown = unknown or f"the bytes of its input {unmeasured} are not known"
    if not scale.work and any("rows" in amounts for amounts in outputs.values()):
        read = sum(float(amounts.get("bytes", 0)) for amounts in outputs.values())
        scale = replace(scale, work={"rows": read}, outside=read)
    whole = sum(float(amounts.get("bytes", 0)) for amounts in staged)
    bytes_in = max(scale.read, sum(float(amounts.get("bytes", 0)) for _, amounts in reads))
    bytes_out = sum(float(amounts.get("bytes", 0)) for amounts in outputs.values())
    if scale.task_output:
        scale = replace(scale, tasks=max(1.0, bytes_out / scale.task_output))
    in_flight = min(scale.tasks, _workers(config, resources))
    disk = (
        in_flight * scale.task_disk + scale.local + whole + (0.0 if scale.task_disk else bytes_out)
    )  # tasks store their own
    work = {"store.read": bytes_in, "store.write": bytes_out + scale.written, **scale.work}
    seconds = sum(amount / rates()[name]["rate"] for name, amount in work.items())
    moved = bytes_in + scale.outside + bytes_out + scale.written
    return NodeScale(
        bytes_in=bytes_in,
        bytes_out=bytes_out,
        outside=scale.outside,
        spilled=scale.written,
        disk=disk,
        memory=max(scale.memory, in_flight * scale.task_memory),
        tasks=scale.tasks if scale.work else 1.0,
        requests=moved / BLOCK + TASK_REQUESTS * scale.tasks + sum(float(a.get("files", 1)) for _, a in reads),
        core_seconds=seconds if scale.work else 0.0,
        seconds=max(seconds / (resources.cpus * resources.nodes), moved / NETWORK) if scale.work else 0.0,
        rates=tuple(scale.work),
        unknown=unknown,
        unmeasured=unmeasured,
        notes=scale.notes,
        refusals=scale.refusals,
        outputs=outputs,
    )


def _workers(config: Any, resources: Resources) -> float:
    """Tasks in flight on one machine."""
    workers = getattr(config, "workers", None)
    return float(workers) if isinstance(workers, int) else float(resources.cpus)


def _fixed(type_name: str, config: Any, port: str, known: Mapping[str, Any]) -> dict[str, Any]:
    """What an output holds where its stage does not say: raw sources by address, rows and weights by their number."""
    declared = data_sets()
    if type_name == "RawFiles":
        volumes = [declared["volumes"].get(source.uri.partition("@")[0]) for source in getattr(config, port, ())]
        if volumes and None not in volumes and getattr(config, "origin", "listing") == "listing":
            names = ("source_bytes", "files", "documents", "text_bytes")
            sums = {name: sum(one[name] for one in volumes) for name in names}
            return sums | {"bytes": 200 * sums["files"]}
        return {}
    if type_name in declared["whole_bytes"] and _from_outside(config):
        return {"bytes": declared["whole_bytes"][type_name], "files": 20.0}
    if type_name == "Model" and "parameters" in known:
        return {"bytes": 4.0 * known["parameters"], "files": 1 + known["parameters"] // 1_250_000_000}
    if type_name == "OptimizerState" and "parameters" in known:
        return {"bytes": 8.0 * known["parameters"], "files": 2 + known["parameters"] // 625_000_000}
    if port == "train" and "rows" in known and (each := declared["bytes_a_row"].get(type_name)):
        images = _images(config, declared) if type_name == "ImageConversations" else 0
        pixels = images * declared["image_bytes"]["mean"]
        total = each * known["rows"] + pixels
        return {"bytes": total, "files": max(1.0, total / 2**29), "rows": known["rows"]} | (
            {"images": images} if images else {}
        )
    if port == "heldout" and "rows" in known:
        return {"bytes": 0.0, "files": 1.0}
    return {"bytes": 0.0, "files": 1.0} if type_name in ("Tokenizer", "EvalReport", "Overlap", "Completions") else {}


def _from_outside(config: Any) -> bool:
    """Whether a stage takes data from outside, instead of making it on this machine."""
    sets: dict[str, Any] = getattr(config, "data_sets", None) or {}
    origins = {source.origin for source in sets.values()} or {getattr(config, "origin", "machine")}
    return not origins & {"machine", "drawn"}


def _images(config: Any, declared: Mapping[str, Any]) -> float:
    kinds = getattr(config, "train_on", ())
    sources = [source for source in getattr(config, "sources", ()) if source.kind in kinds]
    return float(sum(declared["images"].get(source.name, 0) // source.every for source in sources))


def limits(name: str, scale: NodeScale, resources: Resources) -> list[str]:
    """What a node would run into, one line each."""
    lines: list[str] = []
    if scale.disk > resources.scratch_gib * GIB:
        given = f"resources.{name}.scratch_gib = {resources.scratch_gib:g}"
        lines.append(f"{name}: needs {size(scale.disk)} of local disk, but {given}")
    if scale.memory > resources.memory_gib * GIB:
        given = f"resources.{name}.memory_gib = {resources.memory_gib:g}"
        lines.append(f"{name}: needs {size(scale.memory)} of memory, but {given}")
    if scale.tasks > MOST_TASKS:
        lines.append(f"{name}: {scale.tasks:,.0f} tasks: more than {MOST_TASKS:,} are not followed well")
    return lines
