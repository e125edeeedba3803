"""What the runtime gives a stage: `stages.core.context.Context` over the ledger and a folder of this machine."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import platform
import resource
import time
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from stages.core.artifacts import Artifact, ArtifactManifest, FileEntry
from stages.core.checkpoints import upload_folder
from stages.core.config import StageConfig
from stages.core.context import LocalArtifact
from stages.core.errors import InfraError, InputError, Preempted, StageError
from stages.core.events import Events, world_size
from stages.core.files import inside, is_inside
from stages.core.index import artifact_manifest
from stages.core.interpreters import packages_digest
from stages.core.leases import LeaseLost
from stages.core.ledger import Ledger
from stages.core.messages import Attempt, InputRef, StageRequest, StageResult
from stages.core.metric_rows import METRICS_FILE
from stages.core.node_staging import once
from stages.core.records import now
from stages.core.registry import validated_config
from stages.core.runtime_checkpoints import RuntimeCheckpoints
from stages.core.stage import Stage
from stages.core.staging import Cache, link_or_copy
from stages.core.store_errors import Damaged
from stages.core.task_objects import StoreObjects, work_prefix
from stages.core.timed_part import ONCE
from stages.core.workspace import keep

PUBLISH_PATIENCE = 15
"""How many times as long as usual a store that fails is asked again when the work is done (half an hour): making it
anew costs more.
"""

STOP_SECONDS = 300.0
"""How long an attempt that rehearses a stop waits to be asked: then it goes on, and was not stopped."""


class RuntimeContext:
    """`stages.core.context.Context` over a store."""

    def __init__(
        self, request: StageRequest, stage: type[Stage[StageConfig]], ledger: Ledger, events: Events, root: Path
    ) -> None:
        self._once_before = ONCE.spent()  # of other attempts in this process
        self.request, self.ledger, self.events, self.root = request, ledger, events, root
        self.stage, self.node = stage, request.node
        self.config = validated_config(stage, request.node, request.config)
        self.scratch = root / "scratch"
        self.scratch.mkdir()
        self.metrics_path = root / METRICS_FILE
        self.metrics_path.touch()
        self.checkpoints = RuntimeCheckpoints(request, ledger, events, root)
        self.nproc_per_node = int(
            os.environ.get("MOXIN_NPROC_PER_NODE", "1")
        )  # the launcher knows (flows/launch/base.py)
        self._stopping = False
        self._awaits_stop = request.rehearses_stop
        self.stats: dict[str, Any] = {}
        self.facets: dict[str, dict[str, str | int]] = {port: {} for port in request.outputs}
        self.meta: dict[str, dict[str, Any]] = {port: {} for port in request.outputs}
        self.linked: dict[str, list[FileEntry]] = {port: [] for port in request.outputs}
        self._inputs: dict[str, list[LocalArtifact]] = {}
        self.bytes_in = 0

    @property
    def stopping(self) -> bool:
        """Whether the stage was asked to stop. An attempt that rehearses this waits for it once it has a checkpoint:
        how long a few steps take decides nothing.
        """
        if self._awaits_stop and self.checkpoints.saved is not None and self.checkpoints.resumed_from is None:
            self._awaits_stop = False
            until = time.monotonic() + STOP_SECONDS
            while not self._stopping and time.monotonic() < until:
                time.sleep(0.05)
        return self._stopping

    @property
    def rehearses_stop(self) -> bool:
        return self._awaits_stop and self.checkpoints.resumed_from is None

    @stopping.setter
    def stopping(self, value: bool) -> None:
        self._stopping = value

    @functools.cached_property
    def tasks(self) -> StoreObjects:
        folder = self.scratch / "tasks"
        folder.mkdir(exist_ok=True)
        return StoreObjects(self.ledger.store, work_prefix(self.request.stage, self.request.key), folder)

    # inputs -----------------------------------------------------------------------------------------------------

    def stage_in(self, cache: Cache, folder: Path | None = None) -> None:
        """Bring the inputs that are read whole to local disk, through the content-addressed cache. folder: which all
        processes of the attempt on this machine share; one of them does it, and the others take over what it found.
        """
        if folder is None:
            self._inputs = self._stage_in_all(cache, self.root / "in")
        else:
            self._take_over(once(folder, lambda: _told(self._stage_in_all(cache, folder / "in"))))
        self.bytes_in = sum(
            entry.size for many in self._inputs.values() for artifact in many for entry in artifact.manifest.files
        )

    def _take_over(self, staged: Mapping[str, Any]) -> None:
        for port, many in staged.items():
            self._inputs[port] = [
                LocalArtifact(place and Path(place), ArtifactManifest.model_validate(manifest), node)
                for place, manifest, node in many
            ]

    def _stage_in_all(self, cache: Cache, root: Path) -> dict[str, list[LocalArtifact]]:
        producers: dict[str, StageResult | None] = {}
        return {
            port: [self._stage_in_one(port, root / port / str(i), ref, cache, producers) for i, ref in enumerate(refs)]
            for port, refs in self.request.inputs.items()
        }

    def _stage_in_one(
        self, port: str, folder: Path, ref: InputRef, cache: Cache, producers: dict[str, StageResult | None]
    ) -> LocalArtifact:
        entries: list[FileEntry] = []
        try:
            entries = self.ledger.input_entries(ref, producers)
            if odd := next((e.path for e in entries if not is_inside(e.path)), None):
                raise InputError(f"artifact {ref.node}.{ref.port} lists a path outside itself: {odd!r}")
            if self.stage.reads.get(port, "whole") != "whole":
                return LocalArtifact(None, ref.manifest.model_copy(update={"files": tuple(entries)}), ref.node)
            targets = [(entry, folder / entry.path) for entry in entries]
            folder.mkdir(parents=True, exist_ok=True)
            cache.fetch(targets)
        except Damaged as error:
            self._tell_damage(error, ref, entries)
        return LocalArtifact(folder, ref.manifest.model_copy(update={"files": tuple(entries)}), ref.node)

    def _tell_damage(self, error: Damaged, ref: InputRef, entries: Sequence[FileEntry]) -> NoReturn:
        """Report what is damaged in the store: from now on every plan shows its producer as one that must run."""
        self._require_damage(error, entries)
        self.ledger.report_damage(error.key, error.sha256, ref.manifest.index)
        raise InputError(
            f"{error}. {ref.node} made it: 'moxin run --select {ref.node} --force' makes it again ('moxin plan'"
            " shows it now)"
        ) from error

    @contextlib.contextmanager
    def damage_told(self) -> Generator[None]:
        """While a stage runs: an input that it, or one of its tasks, finds damaged is reported; what another of its
        tasks had made is forgotten, so that the next attempt makes it again.
        """
        try:
            yield
        except Damaged as error:
            if error.key.startswith(self.tasks.prefix):
                step, _, rest = error.key.removeprefix(self.tasks.prefix).partition(".files/")
                self.tasks.delete([f"{step}/{rest.partition('.')[0]}.json"])
                raise InfraError(f"{error}: a task of {self.node} had made it, and makes it again") from error
            for port, artifacts in self._inputs.items():
                for artifact, ref in zip(artifacts, self.request.inputs[port], strict=True):
                    if any(entry.object == error.key for entry in artifact.manifest.files):
                        self._tell_damage(error, ref, artifact.manifest.files)
            raise

    def _require_damage(self, error: Damaged, entries: Sequence[FileEntry]) -> None:
        """Raise InfraError when the object is whole in the store: then this machine's disk or memory is bad, and its
        producer need not run again.
        """
        expected = next((entry.sha256 for entry in entries if entry.object == error.key), None)
        with contextlib.suppress(Damaged):
            if expected and self.ledger.store.digest(error.key) == expected:
                where = self.ledger.store.where(error.key)
                raise InfraError(
                    f"{where} is whole in the store, but its copy on this machine is damaged: look at its disk and"
                    " memory"
                ) from error

    def input(self, port: str) -> LocalArtifact:
        return self._inputs[port][0]

    def inputs(self, port: str) -> list[LocalArtifact]:
        return self._inputs.get(port, [])

    # outputs ----------------------------------------------------------------------------------------------------

    def output(self, port: str) -> Path:
        if port not in self.request.outputs:
            raise KeyError(f"stage {self.request.stage} has no output {port}")
        folder = self.root / "out" / port
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def link(self, port: str, path: str, entry: FileEntry) -> None:
        if entry.is_local:
            place = inside(self.output(port), path)
            place.parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(Path(entry.object), place)
        else:
            self.linked[port].append(entry.model_copy(update={"path": path}))

    def describe(
        self, port: str, *, facets: Mapping[str, str | int] | None = None, meta: Mapping[str, Any] | None = None
    ) -> None:
        self.facets[port].update(facets or {})
        self.meta[port].update(meta or {})

    def publish(self, started: tuple[str, float], cache: Cache) -> StageResult:
        """Upload the outputs and make them visible with one conditional PUT of the manifest.

        A store that fails is waited for; when it does not come back, the outputs are kept for the next attempt on this
        machine.
        """
        usual = self.ledger.store.patience
        self.ledger.store.patience *= PUBLISH_PATIENCE
        try:
            if (done := self.ledger.published_by(self.request.lease, self.request.replaces)) is not None:
                return done  # by another process of this attempt: a machine that its scheduler took for dead lives on
            result = self._publish_or_find(started, cache)
        except (InfraError, Preempted) as error:
            if (
                isinstance(error, LeaseLost) or world_size() > 1
            ):  # of several processes, the last checkpoint costs little to go on from
                raise
            if (where := keep(self.request, self.root, self._state())) is None:
                raise
            raise type(error)(
                f"{error}. The outputs are done and kept in {where}: the next attempt that has this folder publishes"
                " them"
            ) from error
        self.ledger.store.patience = usual
        self._drop_work()
        return result

    def _drop_work(self) -> None:
        """Delete what tasks left that the result does not refer to, receipts first. What stays for a failure, or where
        a result is replaced that somebody may be reading, `moxin gc` finds.
        """
        used = "tasks" in self.__dict__ or any(self.linked.values())
        if self.request.replaces or not used:
            return
        kept = {entry.object[len(self.tasks.prefix) :] for entries in self.linked.values() for entry in entries}
        try:
            names = [row.key for row in self.tasks.list("") if row.key not in kept]
            receipts = [name for name in names if name.endswith(".json")]
            self.tasks.delete(receipts)
            self.tasks.delete(name for name in names if not name.endswith(".json"))
        except StageError as error:
            self.log(f"what the tasks of {self.node} left stays for 'moxin gc': {error}", "warning")

    def _state(self) -> dict[str, Any]:
        """What a later attempt needs to publish what this one has made."""
        rows = self.metrics_path.read_text(encoding="utf-8")
        names = ("facets", "meta", "stats", "bytes_in")
        return {name: getattr(self, name) for name in names} | {
            "linked": {port: [entry.value() for entry in entries] for port, entries in self.linked.items()},
            "metrics": rows,
            "resumed_from": self.checkpoints.resumed_from,
        }

    def go_on_with(self, state: Mapping[str, Any]) -> None:
        """Take over what an earlier attempt kept."""
        self.facets, self.meta, self.stats, self.bytes_in = (
            state[name] for name in ("facets", "meta", "stats", "bytes_in")
        )
        self.linked = {
            port: [FileEntry.model_validate(value) for value in entries] for port, entries in state["linked"].items()
        }
        self.metrics_path.write_text(state["metrics"], encoding="utf-8")
        self.checkpoints.resumed_from = state["resumed_from"]
        self.log("publishing what an earlier attempt had made and could not publish")

    def _publish_or_find(self, started: tuple[str, float], cache: Cache) -> StageResult:
        """Publish; where another process of this attempt has done so since it was asked for, take what that has."""
        try:
            return self._publish(started, cache)
        except LeaseLost:
            if (done := self.ledger.published_by(self.request.lease, self.request.replaces)) is not None:
                return done
            raise

    def _publish(self, started: tuple[str, float], cache: Cache) -> StageResult:
        request = self.request
        prefix = f"objects/{request.stage}/{request.key}/{self.ledger.folder(request.lease)}"
        outputs = {port: self._upload(port, type, prefix, cache) for port, type in request.outputs.items()}
        metrics = metrics_sha256 = None
        if self.metrics_path.stat().st_size:
            metrics = f"{prefix}/metrics.jsonl"
            _, metrics_sha256 = self.ledger.store.upload(metrics, self.metrics_path)
        process, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
        attempt = Attempt(
            run_id=request.run_id,
            epoch=request.lease.epoch,
            start=self.ledger.start,
            started_at=started[0],
            ended_at=now(),
            wall_seconds=round(time.monotonic() - started[1], 3),
            cpu_seconds=round(process.ru_utime + process.ru_stime + children.ru_utime + children.ru_stime, 3),
            peak_rss_bytes=max(process.ru_maxrss, children.ru_maxrss) * 1024,
            bytes_in=self.bytes_in,
            bytes_out=sum(m.size for m in outputs.values()),
            resumed_from=self.checkpoints.resumed_from,
            machine={
                "processor": platform.machine(),
                "cores": os.cpu_count() or 0,
                "python": platform.python_version(),
            },
        )
        result = StageResult(
            key=request.key,
            node=request.node,
            stage=request.stage,
            revision=request.revision,
            config=self.config.model_dump(mode="json"),
            identity=self.config.identity(),
            inputs=request.inputs,
            outputs=outputs,
            stats=self.stats
            | ({"checkpoints": most} if (most := self.checkpoints.most) else {})
            | ({"once": once_a_machine} if (once_a_machine := ONCE.since(self._once_before))["seconds"] else {}),
            metrics_object=metrics,
            code=request.code.model_copy(update={"packages_digest": packages_digest()}),
            attempt=attempt,
        )
        self.ledger.publish(result, request.lease, request.replaces, metrics_sha256)
        return result

    def _upload(self, port: str, type_name: str, prefix: str, cache: Cache) -> ArtifactManifest:
        folder = self.output(port)
        facets = self.facets[port]
        missing = sorted(Artifact.registry[type_name].facets - facets.keys())
        if missing:
            raise TypeError(f"stage {self.request.stage} left facets of {port} unstated: {', '.join(missing)}")
        for name, value in self.request.expected_facets.get(port, {}).items():
            if facets.get(name) != value:
                raise TypeError(
                    f"stage {self.request.stage}: {port}.{name} is {facets.get(name)!r}, the plan said {value!r}"
                )
        files = upload_folder(self.ledger.store, f"{prefix}/{port}", folder, self.checkpoints.stored)
        for entry in files:  # what was just made is what the next stage on this machine reads
            cache.keep(entry, folder / entry.path)
        files = tuple(sorted((*files, *self.linked[port]), key=lambda entry: entry.path))
        if not files:
            raise TypeError(f"stage {self.request.stage} wrote no file to its output {port}")
        if twice := [a.path for a, b in itertools.pairwise(files) if a.path == b.path]:
            raise TypeError(f"stage {self.request.stage} gave two files of its output {port} the path {twice[0]}")
        return artifact_manifest(
            self.ledger.store, f"{prefix}/.index/{port}", files, type=type_name, facets=facets, meta=self.meta[port]
        )

    # what outlives an attempt ------------------------------------------------------------------------------------

    def remember(self, name: str, value: Any) -> None:
        self.ledger.store.put(f"memory/{name}.json", json.dumps(value).encode())

    def recall(self, name: str) -> Any:
        answer = self.ledger.store.get(f"memory/{name}.json")
        return None if answer is None else json.loads(answer[0])

    # telling ----------------------------------------------------------------------------------------------------

    def stat(self, **values: Any) -> None:
        self.stats.update(values)

    def metric(self, step: int, **values: float) -> None:
        with open(self.metrics_path, "a", encoding="utf-8") as stream:
            stream.write(json.dumps({"step": step, **values}) + "\n")
        self.events.emit("metric", step=step, values=values)

    def progress(self, done: float, total: float | None = None, unit: str = "") -> None:
        self.events.progress(done, total, unit)

    def log(self, message: str, level: str = "info") -> None:
        self.events.emit("log", level=level, message=message)

    def array(self, place: str, name: str, tasks: int, cpus: float, memory_gib: float) -> None:
        self.events.emit("array", place=place, name=name, tasks=tasks, cpus=cpus, memory_gib=memory_gib)


def _told(inputs: Mapping[str, Sequence[LocalArtifact]]) -> dict[str, Any]:
    """Inputs as JSON, for the other processes on this machine."""
    return {
        port: [[a.folder and str(a.folder), a.manifest.model_dump(mode="json"), a.node] for a in many]
        for port, many in inputs.items()
    }
