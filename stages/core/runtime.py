"""The entry point in every container: read a request, stage the inputs in, run the stage, publish, and say how it went.

    python -m stages.core.runtime REQUEST [--secrets secrets.json]

REQUEST is a file, or JSON that says where in the store it lies (`StoredRequest`).

Events go to standard output as JSON lines ({"event": "begun" | "log" | "progress" | "metric" | "array" | "done", ...});
whatever a library prints goes to standard error. The exit status carries the exit class (`ExitClass.code`). When
standard input is a pipe and it closes, the launcher has died: the stage then stops as if it had been asked to. A
launcher that cannot hand over credentials in the environment without showing them puts them into a file (`Secrets`),
which only the stage's user can read.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import shutil
import sys
import time
import traceback
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from stages.core import selfcheck
from stages.core.config import StageConfig
from stages.core.errors import ConfigError, ExitClass, InfraError, PeerFailed, Preempted, StageError
from stages.core.events import Events, own_rank, world_size
from stages.core.failures import classify, disk_told
from stages.core.interpreters import interpreter
from stages.core.keys import sha256
from stages.core.ledger import Ledger
from stages.core.messages import SCHEMA, StageRequest, StageResult, StoredRequest
from stages.core.processes import no_core_files
from stages.core.reading import CACHE, share
from stages.core.records import AttemptOutcome, now
from stages.core.registry import find_stage, validated_config
from stages.core.runtime_context import RuntimeContext
from stages.core.secrets_file import take_secrets
from stages.core.stage import Stage
from stages.core.staging import Cache
from stages.core.stopping import Stopper
from stages.core.store import Store
from stages.core.store_errors import Conflict
from stages.core.workspace import scratch, shared_folder, take_kept, workspace

OUTCOME_PATIENCE, OUTCOME_CHARACTERS = 5.0, 20_000
"""Seconds for which a store that is away is asked to take an attempt's outcome, and how long its line may be."""
ENTERED = "MOXIN_ENTERED"
"""Which engine's Python this process has begun anew in."""


def engine_python(stage: type[Stage[StageConfig]], request: StageRequest) -> str | None:
    """The Python that an attempt has to run in; None: this one. Raises ConfigError when its engine is not installed."""
    engine = stage.interpreter(validated_config(stage, request.node, request.config))
    if engine is None:
        return None
    path = interpreter(request.node, engine, "to another")
    return None if os.environ.get(ENTERED) == path else path


def enter(python: str, arguments: Sequence[str], output: int) -> None:
    """Begin anew in another Python: the same process, so that its launcher, its signals and its pipes stay what they
    are.
    """
    os.environ[ENTERED] = python
    os.dup2(output, 1)
    os.execv(python, [python, "-m", "stages.core.runtime", *arguments])


def run(request: StageRequest, events: Events, stopper: Stopper) -> StageResult | None:
    """Run one attempt from request to published manifest (None where another process publishes). Raises StageError, or
    whatever the stage raised.
    """
    started = (now(), time.monotonic())
    if request.schema_version != SCHEMA:
        raise ConfigError(
            f"the request has schema {request.schema_version}, this image speaks {SCHEMA}: use matching versions"
        )
    stage = find_stage(request.stage)
    ledger = Ledger(Store(request.store))
    with workspace() as root, disk_told(scratch()), cache_folder(request, root) as folder:
        context = RuntimeContext(request, stage, ledger, events, root)
        ledger.store.tell = lambda line: context.log(line, "warning")
        cache = Cache(
            folder,
            ledger.store,
            f"{request.key}/{request.lease.epoch}",
            ledger.store.tell,
        )
        stopper.context = context
        share(request.store, f"{request.key}/{request.lease.epoch}")
        if own_rank() == 0:
            ledger.check(request.lease)  # a job may begin, or begin again, long after another attempt took the key
        if (done := ledger.published_by(request.lease, request.replaces)) is not None:
            context.log("its result is published already, by this attempt before it began again")
            return done if own_rank() == 0 else None
        ledger.begin_process(request.lease, own_rank())
        if world_size() == 1 and (kept := take_kept(request, root)) is not None:
            context.go_on_with(kept)
            return context.publish(started, cache)
        if own_rank() == 0:
            selfcheck.require(
                request.node, context.config
            )  # before the first byte: an engine that cannot begin has no use for its inputs
        module = importlib.import_module(f"stages.{request.stage}.run")
        with getattr(module, "meeting", contextlib.nullcontext)(), inputs_folder(request) as shared:
            context.stage_in(cache, shared)
            stopper.cooperative = stage.checkpoints
            if context.stopping:
                raise Preempted("stopped on request")
            with context.damage_told():
                module.run(context)
            stopper.cooperative = False
        if own_rank() > 0:
            return None
        if context.stopping:
            raise Preempted("stopped on request")
        return context.publish(started, cache)


@contextmanager
def cache_folder(request: StageRequest, root: Path) -> Generator[Path]:
    """Where this attempt keeps what it fetches, for the processes that it starts too: the machine's cache, else a
    folder that goes with the attempt, one for all of its ranks.
    """
    if given := os.environ.get(CACHE):
        yield Path(given)
        return
    alone = contextlib.nullcontext(root / "cache")
    with alone if world_size() == 1 else shared_folder(f"cache-{request.key}-{request.lease.epoch}") as folder:
        os.environ[CACHE] = str(folder)
        try:
            yield folder
        finally:
            del os.environ[CACHE]


@contextmanager
def inputs_folder(request: StageRequest) -> Generator[Path | None]:
    """Where the processes of an attempt on this machine have their inputs together; None: there is one process."""
    if world_size() == 1:
        yield None
        return
    with shared_folder(f"inputs-{request.key}-{request.lease.epoch}") as folder:
        yield folder


def read_request(given: str) -> StageRequest:
    """The request of the command line: of a file, or of the store. Raises InfraError when the store has another one."""
    if not given.startswith("{"):
        return StageRequest.model_validate_json(Path(given).read_bytes())
    place = StoredRequest.model_validate_json(given)
    store = Store(place.store)
    answer = store.get(place.object)
    if answer is None or sha256(answer[0]) != place.sha256:
        state = "gone" if answer is None else "another one now"
        raise InfraError(f"the request {store.where(place.object)} is {state}: another attempt has taken over")
    return StageRequest.model_validate_json(answer[0])


def main(arguments: list[str] | None = None) -> int:
    """Command line of the container. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m stages.core.runtime", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    parser.add_argument("request", help="the StageRequest: a JSON file, or JSON that says where in the store it lies")
    parser.add_argument("--secrets", type=Path, help="credentials of the store, a JSON file")
    options = parser.parse_args(arguments)
    no_core_files()
    request: StageRequest | None = None
    stopper: Stopper | None = None
    descriptor = os.dup(1)
    os.dup2(2, 1)  # libraries that print must not disturb the event stream
    sys.stdout = sys.stderr
    events = Events(descriptor)
    try:
        stopper = Stopper()
        secrets = take_secrets(options.secrets) if options.secrets else None  # the store may ask for them
        request = read_request(options.request)
        if python := engine_python(find_stage(request.stage), request):
            if secrets:  # the Python that stays takes them again: one that is left removes no files
                shutil.rmtree(secrets, ignore_errors=True)
            enter(python, sys.argv[1:] if arguments is None else arguments, descriptor)
        events.emit("begun", at=time.time())  # from here on its machines are held: a launcher may have let it wait
        result = run(request, events, stopper)
        stopper.over()
    except BaseException as error:
        if stopper:
            stopper.over()
        exit_class, message = classify(error, scratch())
        if exit_class is ExitClass.BUG:
            traceback.print_exc(file=sys.stderr)
        if own_rank() == 0 or not isinstance(error, PeerFailed):  # the one that failed has said why
            events.emit("done", exit=exit_class, message=message)
        leave_outcome(request, exit_class, message)
        return exit_class.code
    if result is not None:
        events.emit("done", exit=ExitClass.OK, message="", key=result.key, wall_seconds=result.attempt.wall_seconds)
        leave_outcome(request, ExitClass.OK, "")
    return 0


def leave_outcome(request: StageRequest | None, exit_class: ExitClass, message: str) -> None:
    """Write into the store how the attempt ended: the event `done` may never be read, where logs rotate and followers
    die. Only the first process does, and a store that is away now is not waited for: the grace may be short.
    """
    if request is None or own_rank() > 0:
        return
    lease = request.lease
    outcome = AttemptOutcome(
        key=lease.key,
        epoch=lease.epoch,
        ended_at=now(),
        exit_class=exit_class,
        message=message[:OUTCOME_CHARACTERS],
    )
    with contextlib.suppress(StageError, Conflict):
        Ledger(Store(request.store, patience=OUTCOME_PATIENCE)).leave_outcome(outcome)


if __name__ == "__main__":
    sys.exit(main())
