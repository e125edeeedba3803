"""The entry point in every container: read a request, stage the inputs in, run the stage, publish, and say how it went.

    python -m stages.core.runtime request.json [--secrets secrets.json]

Events go to standard output as JSON lines ({"event": "log" | "progress" | "metric" | "array" | "done", ...}); whatever a library
prints goes to standard error. The exit status carries the exit class (`ExitClass.code`). When standard input is a pipe
and it closes, the launcher has died: the stage then stops as if it had been asked to. A launcher that cannot hand over
credentials in the environment without showing them puts them into a file (`Secrets`), which only the stage's user can read.
"""

from __future__ import annotations

import argparse
import atexit
import importlib
import inspect
import json
import os
import platform
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from stages.core.artifacts import Artifact, ArtifactManifest, FileEntry
from stages.core.contracts import (
    SCHEMA,
    Attempt,
    ConfigError,
    ExitClass,
    InputError,
    InputRef,
    LocalArtifact,
    Preempted,
    Secrets,
    Stage,
    StageConfig,
    StageError,
    StageRequest,
    StageResult,
)
from stages.core.interpreters import interpreter
from stages.core.keys import artifact_digest
from stages.core.ledger import Ledger, now, upload_folder
from stages.core.store import Store, disk_full, file_sha256

GRACE_SECONDS = float(os.environ.get("MOXIN_GRACE_SECONDS", "25"))
"""Between being asked to stop and being cut off: time for a last checkpoint."""
METRICS_FILE = ".metrics.jsonl"
ENTERED = "MOXIN_ENTERED"
"""Which engine's Python this process has begun anew in."""


class Events:
    """The event stream. Owns the real standard output; everything else in the process prints to standard error."""

    def __init__(self, descriptor: int) -> None:
        self._stream = os.fdopen(descriptor, "w", buffering=1, encoding="utf-8")
        self._lock = threading.Lock()
        self._last_progress = 0.0

    def emit(self, event: str, **fields: Any) -> None:
        """Write one event. A reader that is gone is no reason to fail: the stop comes by another way.

        A process that is not the first of its stage says why it failed, as a log line, and nothing else.
        """
        if (rank := own_rank()) > 0:
            if event != "done" or fields["exit"] in (ExitClass.OK, ExitClass.PREEMPTED):
                return
            event, fields = "log", {"level": "error", "message": f"process {rank}: {fields['message']}"}
        line = json.dumps({"event": event, **fields}, ensure_ascii=False, default=str)
        with self._lock:
            try:
                self._stream.write(line + "\n")
            except (BrokenPipeError, ValueError):
                return

    def progress(self, done: float, total: float | None, unit: str) -> None:
        """At most five progress events a second, and always the last one."""
        if (total is not None and done >= total) or time.monotonic() - self._last_progress >= 0.2:
            self._last_progress = time.monotonic()
            self.emit("progress", done=done, total=total, unit=unit)


def find_stage(name: str) -> type[Stage[StageConfig]]:
    """The stage class that `stages/<name>/spec.py` declares."""
    try:
        module = importlib.import_module(f"stages.{name}.spec")
    except ModuleNotFoundError as error:
        raise ConfigError(f"this image has no stage '{name}' ({error})") from error
    found = [c for _, c in inspect.getmembers(module, inspect.isclass) if issubclass(c, Stage) and c.__module__ == module.__name__]
    if len(found) != 1:
        raise ConfigError(f"stages/{name}/spec.py must declare exactly one stage, found {len(found)}")
    return found[0]


def validated_config(stage: type[Stage[StageConfig]], node: str, values: Mapping[str, Any]) -> StageConfig:
    """Validate a configuration; a mistake becomes one line that names node, key and value."""
    try:
        return stage.config_type.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "config"
        if first["type"] == "extra_forbidden":
            raise ConfigError(f"{node}.{key}: stage '{stage.stage}' has no such setting") from error
        raise ConfigError(f"{node}.{key} = {first.get('input')!r}: {first['msg'].removeprefix('Value error, ')}") from error


def engine_python(stage: type[Stage[StageConfig]], request: StageRequest) -> str | None:
    """The Python that an attempt has to run in; None: this one. Raises ConfigError when its engine is not installed."""
    engine = stage.interpreter(validated_config(stage, request.node, request.config))
    if engine is None:
        return None
    path = interpreter(request.node, engine, "to another")
    return None if os.environ.get(ENTERED) == path else path


def enter(python: str, arguments: Sequence[str], output: int) -> None:
    """Begin anew in another Python: the same process, so that its launcher, its signals and its pipes stay what they are."""
    os.environ[ENTERED] = python
    os.dup2(output, 1)
    os.execv(python, [python, "-m", "stages.core.runtime", *arguments])


def own_rank() -> int:
    """Which of a stage's processes this is (torchrun's RANK). Only the first tells, publishes and commits."""
    return int(os.environ.get("RANK", "0"))


class RuntimeCheckpoints:
    """Checkpoints of the request's key; the metric rows up to its step travel with each one."""

    def __init__(self, context: RuntimeContext) -> None:
        self._context = context
        self.resumed_from: int | None = None

    def save(self, step: int, directory: Path) -> None:
        self.commit(step, self.upload(step, directory))

    def upload(self, step: int, directory: Path) -> list[dict[str, Any]]:
        files = self._context.ledger.upload_checkpoint(self._context.request.lease, step, Path(directory))
        return [entry.model_dump() for entry in files]

    def commit(self, step: int, parts: Sequence[dict[str, Any]]) -> None:
        with tempfile.TemporaryDirectory(dir=self._context.root) as folder:
            rows = self._context.metrics_path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [row for row in rows if json.loads(row)["step"] <= step]  # the stage may have gone on meanwhile
            (Path(folder) / METRICS_FILE).write_text("".join(kept), encoding="utf-8")
            files = [FileEntry.model_validate(part) for part in [*parts, *self.upload(step, Path(folder))]]
        self._context.ledger.commit_checkpoint(self._context.request.lease, step, tuple(files))
        self._context.events.emit("checkpoint", step=step)

    def latest(self) -> tuple[int, Path] | None:
        steps = self._context.ledger.checkpoint_steps(self._context.request.key)
        if not steps:
            return None
        folder = self._context.scratch / f"checkpoint-{steps[-1]}"
        self._context.ledger.load_checkpoint(self._context.request.key, steps[-1], folder)
        shutil.move(folder / METRICS_FILE, self._context.metrics_path)
        self.resumed_from = steps[-1]
        self._context.log(f"resuming from the checkpoint at step {steps[-1]}")
        return steps[-1], folder


class RuntimeContext:
    """`contracts.Context` over a store."""

    def __init__(self, request: StageRequest, stage: type[Stage[StageConfig]], ledger: Ledger, events: Events, root: Path) -> None:
        self.request, self.ledger, self.events, self.root = request, ledger, events, root
        self.stage, self.node = stage, request.node
        self.config = validated_config(stage, request.node, request.config)
        self.scratch = root / "scratch"
        self.scratch.mkdir()
        self.metrics_path = root / METRICS_FILE
        self.metrics_path.touch()
        self.checkpoints = RuntimeCheckpoints(self)
        self.stopping = False
        self.stats: dict[str, Any] = {}
        self.facets: dict[str, dict[str, str | int]] = {port: {} for port in request.outputs}
        self.meta: dict[str, dict[str, Any]] = {port: {} for port in request.outputs}
        self._inputs: dict[str, list[LocalArtifact]] = {}
        self.bytes_in = 0

    # inputs -----------------------------------------------------------------------------------------------------

    def stage_in(self, cache: Path) -> None:
        """Bring every input to local disk through the content-addressed cache."""
        for port, refs in self.request.inputs.items():
            self._inputs[port] = [self._stage_in_one(port, i, ref, cache) for i, ref in enumerate(refs)]

    def _stage_in_one(self, port: str, index: int, ref: InputRef, cache: Path) -> LocalArtifact:
        folder = self.root / "in" / port / str(index)
        folder.mkdir(parents=True)
        for entry in ref.manifest.files:
            target = folder / entry.path
            if not target.resolve().is_relative_to(folder.resolve()):
                raise InputError(f"artifact {ref.node}.{ref.port} lists a path outside itself: {entry.path!r}")
            target.parent.mkdir(parents=True, exist_ok=True)
            cached = cache / entry.sha256[:2] / entry.sha256
            if not (cached.is_file() and cached.stat().st_size == entry.size):
                self.ledger.store.download(entry.object, cached, entry.sha256)
                cached.chmod(0o444)
            link_or_copy(cached, target)
            self.bytes_in += entry.size
        return LocalArtifact(folder, ref.manifest, ref.node)

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

    def describe(
        self, port: str, *, facets: Mapping[str, str | int] | None = None, meta: Mapping[str, Any] | None = None
    ) -> None:
        self.facets[port].update(facets or {})
        self.meta[port].update(meta or {})

    def publish(self, started: tuple[str, float], cache: Path) -> StageResult:
        """Upload the outputs and make them visible with one conditional PUT of the manifest."""
        request = self.request
        prefix = f"objects/{request.stage}/{request.key}/{request.lease.epoch:06d}"
        outputs = {port: self._upload(port, type, prefix, cache) for port, type in request.outputs.items()}
        metrics = None
        if self.metrics_path.stat().st_size:
            metrics = f"{prefix}/metrics.jsonl"
            self.ledger.store.upload(metrics, self.metrics_path)
        own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
        attempt = Attempt(
            run_id=request.run_id,
            epoch=request.lease.epoch,
            started_at=started[0],
            ended_at=now(),
            wall_seconds=round(time.monotonic() - started[1], 3),
            cpu_seconds=round(own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime, 3),
            peak_rss_bytes=max(own.ru_maxrss, children.ru_maxrss) * 1024,
            bytes_in=self.bytes_in,
            bytes_out=sum(m.size for m in outputs.values()),
            resumed_from=self.checkpoints.resumed_from,
            machine={"processor": platform.machine(), "cores": os.cpu_count() or 0, "python": platform.python_version()},
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
            stats=self.stats,
            metrics_object=metrics,
            code=request.code,
            attempt=attempt,
        )
        self.ledger.publish(result, request.lease, request.replaces)
        return result

    def _upload(self, port: str, type_name: str, prefix: str, cache: Path) -> ArtifactManifest:
        folder = self.output(port)
        facets = self.facets[port]
        missing = sorted(Artifact.registry[type_name].facets - facets.keys())
        if missing:
            raise TypeError(f"stage {self.request.stage} left facets of {port} unstated: {', '.join(missing)}")
        for name, value in self.request.expected_facets.get(port, {}).items():
            if facets.get(name) != value:
                raise TypeError(f"stage {self.request.stage}: {port}.{name} is {facets.get(name)!r}, the plan said {value!r}")
        files = upload_folder(self.ledger.store, f"{prefix}/{port}", folder)
        if not files:
            raise TypeError(f"stage {self.request.stage} wrote no file to its output {port}")
        for entry in files:  # what was just made is what the next stage on this machine reads
            cached = cache / entry.sha256[:2] / entry.sha256
            if not cached.exists():
                cached.parent.mkdir(parents=True, exist_ok=True)
                (folder / entry.path).chmod(0o444)
                link_or_copy(folder / entry.path, cached)
        digest = artifact_digest(type_name, facets, files)
        return ArtifactManifest(type=type_name, digest=digest, facets=facets, meta=self.meta[port], files=files)

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

    def array(self, jobs: Path, tasks: int, cpus: float, memory_gib: float) -> None:
        self.events.emit("array", jobs=str(jobs), tasks=tasks, cpus=cpus, memory_gib=memory_gib)


def link_or_copy(source: Path, target: Path) -> None:
    """Hard-link where the file system allows it; copy otherwise. Appears whole or not at all."""
    try:
        os.link(source, target)
    except FileExistsError:
        return
    except OSError:
        partial = target.with_name(f".{target.name}.{os.getpid()}")
        shutil.copyfile(source, partial)
        os.replace(partial, target)


class Stopper:
    """Turns SIGTERM, SIGINT and the launcher's death into an orderly stop, and cuts off a stage that will not stop."""

    def __init__(self) -> None:
        self.context: RuntimeContext | None = None
        self.cooperative = False  # true while a stage that saves checkpoints runs: it polls `stopping`
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)
        try:
            if os.fstat(0).st_mode & 0o170000 == 0o010000:  # a pipe: the launcher holds its other end
                threading.Thread(target=self._watch_parent, daemon=True).start()
        except OSError:
            pass

    def _watch_parent(self) -> None:
        while os.read(0, 4096):
            pass
        _cut_off_later()  # from here: a main thread in a long call of C code handles the signal only when it comes back
        os.kill(os.getpid(), signal.SIGTERM)

    def _on_signal(self, number: int, frame: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        _cut_off_later()
        if self.context is not None:
            self.context.stopping = True
        if not self.cooperative:
            raise Preempted("stopped on request")


def _cut_off_later() -> None:
    timer = threading.Timer(GRACE_SECONDS, _cut_off)
    timer.daemon = True
    timer.start()


def _cut_off() -> None:
    """End this process and whatever it started, now."""
    os.write(2, b"the stage did not stop within its grace: cut off\n")
    if os.getpgrp() == os.getpid():
        for child in _children():
            os.kill(child, signal.SIGKILL)
    os._exit(ExitClass.PREEMPTED.code)


def _children() -> list[int]:
    """Process numbers of this process group, other than this one."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == os.getpgrp() and int(entry.name) != os.getpid():
            found.append(int(entry.name))
    return found


def classify(error: BaseException, root: Path) -> tuple[ExitClass, str]:
    """The exit class of an error and the one line that says it."""
    if isinstance(error, StageError):
        return error.exit_class, str(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return ExitClass.OOM, f"out of memory: {error}" if str(error) else "out of memory"
    if isinstance(error, OSError) and (full := disk_full(error, error.filename or root)):
        return full.exit_class, str(full)
    frame = traceback.extract_tb(error.__traceback__)[-1] if error.__traceback__ else None
    at = f" ({Path(frame.filename).name}:{frame.lineno})" if frame else ""
    return ExitClass.BUG, f"{type(error).__name__}: {error}{at}"


def _scratch() -> Path:
    """Where attempts have their folders. A stage writes here alone: a write that fails without a name failed here."""
    return Path(os.environ.get("MOXIN_SCRATCH") or tempfile.gettempdir())


@contextmanager
def _workspace() -> Iterator[Path]:
    """A folder for this attempt alone, removed whatever happens."""
    base = _scratch()
    base.mkdir(parents=True, exist_ok=True)
    root = Path(tempfile.mkdtemp(prefix="stage-", dir=base))
    try:
        yield root
    finally:
        shutil.rmtree(root, ignore_errors=True)


def run(request: StageRequest, events: Events, stopper: Stopper) -> StageResult | None:
    """Run one attempt from request to published manifest (None where another process publishes). Raises StageError, or whatever the stage raised."""
    started = (now(), time.monotonic())
    if request.schema_version != SCHEMA:
        raise ConfigError(f"the request has schema {request.schema_version}, this image speaks {SCHEMA}: use matching versions")
    stage = find_stage(request.stage)
    ledger = Ledger(Store(request.store))
    with _workspace() as root:
        cache = Path(os.environ.get("MOXIN_CACHE") or root / "cache")
        context = RuntimeContext(request, stage, ledger, events, root)
        stopper.context = context
        context.stage_in(cache)
        module = importlib.import_module(f"stages.{request.stage}.run")
        stopper.cooperative = stage.checkpoints
        if context.stopping:
            raise Preempted("stopped on request")
        module.run(context)
        stopper.cooperative = False
        if own_rank() > 0:
            return None
        if context.stopping:
            raise Preempted("stopped on request")
        return context.publish(started, cache)


def take_secrets(path: Path) -> None:
    """Set the environment that a `Secrets` file holds; files in it get paths of their own, in variables of their names."""
    secrets = Secrets.model_validate_json(path.read_bytes())
    os.environ.update(secrets.environment)
    if secrets.files:
        folder = Path(tempfile.mkdtemp(prefix="secrets-", dir=os.environ.get("MOXIN_SCRATCH")))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        for name, text in secrets.files.items():
            (folder / name).touch(mode=0o600)
            (folder / name).write_text(text, encoding="utf-8")
            os.environ[name] = str(folder / name)


def main(arguments: list[str] | None = None) -> int:
    """Command line of the container. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m stages.core.runtime", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("request", type=Path, help="the StageRequest, a JSON file")
    parser.add_argument("--secrets", type=Path, help="credentials of the store, a JSON file")
    options = parser.parse_args(arguments)
    descriptor = os.dup(1)
    os.dup2(2, 1)  # libraries that print must not disturb the event stream
    sys.stdout = sys.stderr
    events = Events(descriptor)
    try:
        stopper = Stopper()
        if options.secrets:
            take_secrets(options.secrets)
        request = StageRequest.model_validate_json(options.request.read_bytes())
        if python := engine_python(find_stage(request.stage), request):
            enter(python, sys.argv[1:] if arguments is None else arguments, descriptor)
        result = run(request, events, stopper)
    except BaseException as error:
        exit_class, message = classify(error, _scratch())
        if exit_class is ExitClass.BUG:
            traceback.print_exc(file=sys.stderr)
        events.emit("done", exit=exit_class, message=message)
        return exit_class.code
    if result is not None:
        events.emit("done", exit=ExitClass.OK, message="", key=result.key, wall_seconds=result.attempt.wall_seconds)
    return 0


__all__ = ["file_sha256", "find_stage", "main", "run", "validated_config"]

if __name__ == "__main__":
    sys.exit(main())
