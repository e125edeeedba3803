"""The Launcher protocol: what Docker, Slurm, Kubernetes and plain processes have in common."""

from __future__ import annotations

import contextlib
import json
import os
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from pydantic import BaseModel, ValidationError

from stages.core.contracts import ConfigError, Resources, Secrets, StageRequest

_ENGINE = re.compile(r"MOXIN_[A-Z_]+_PYTHON")
_FILES = ("AWS_CA_BUNDLE", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE")
_TRUST = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
"""Variables that name files of this machine, which a container has not: their text goes along."""

SiteType = TypeVar("SiteType", bound=BaseModel)


def load_site(model: type[SiteType], variable: str, default: Path, whose: str) -> SiteType:
    """Settings of the place where stages run: the file that a variable names, or the default. Raises ConfigError naming file and key."""
    path = Path(os.environ.get(variable) or default)
    try:
        return model.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise ConfigError(f"no file {path}: {variable} must name the {whose}'s settings") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path.name} is not valid TOML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{path.name}: {'.'.join(map(str, first['loc']))} = {first.get('input')!r}: {first['msg']}") from error


@dataclass(frozen=True)
class Job:
    """One attempt to be run somewhere."""

    request: StageRequest
    resources: Resources
    env: str
    """Name of the environment (folder in containers/) whose image runs the stage."""

    @property
    def labels(self) -> dict[str, str]:
        """What a container is marked with, so that orphans are found. Never a secret."""
        request = self.request
        return {
            "moxin.run": request.run_id,
            "moxin.node": request.node,
            "moxin.key": request.key,
            "moxin.epoch": str(request.lease.epoch),
        }


def event_of(line: str, plain: bool = False) -> dict[str, Any]:
    """A line of a stage's output as an event: its own, or what a library printed as a `log` event of level debug."""
    event: Any = None
    if not plain:
        with contextlib.suppress(ValueError):
            event = json.loads(line)
    if not isinstance(event, dict) or "event" not in event:
        return {"event": "log", "level": "debug", "message": line}
    return event


def public_environment(job: Job) -> dict[str, str]:
    """What every stage is told, wherever it runs. Nothing secret: engines show it."""
    return {
        "PYTHONUNBUFFERED": "1",
        "PYTHONHASHSEED": "0",
        "OMP_NUM_THREADS": str(max(1, int(job.resources.cpus / processes(job)))),
        # Waiting threads sleep: where two stages share the cores, threads that spin made each 30 times slower (measured).
        "OMP_WAIT_POLICY": "passive",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        "MOXIN_RUN": job.request.run_id,
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # or gloo's processes now and then miss each other (pytorch#135712)
    }


def engine_pythons() -> dict[str, str]:
    """Where this machine has the Pythons of engines, for stages that run as its processes; images name their own (`containers/<engine>/Dockerfile`)."""
    return {name: value for name, value in os.environ.items() if _ENGINE.fullmatch(name)}


def secrets_of(job: Job, credentials: dict[str, str]) -> Secrets:
    """The store's credentials for a job that runs in another file system than this process."""
    environment = {name: value for name, value in credentials.items() if name not in _FILES}
    paths = {name: credentials[name] for name in _FILES if name in credentials}
    if job.resources.network == "internet":
        paths |= {name: os.environ[name] for name in _TRUST if name in os.environ}
    files = {name: Path(path).read_text(encoding="utf-8") for name, path in paths.items() if Path(path).is_file()}
    return Secrets(environment=environment, files=files)


def processes(job: Job) -> int:
    """Processes on each node: what its stage wants, and at least one for each GPU."""
    return max(job.resources.processes, job.resources.gpus)


def torchrun(job: Job, *rendezvous: str) -> list[str]:
    """What stands before `-m stages.core.runtime` where a stage has several processes; nothing where it has one.

    A lost process ends them all: the next attempt resumes.
    """
    if job.resources.nodes * processes(job) == 1:
        return []
    return ["-m", "torch.distributed.run", *rendezvous, f"--nnodes={job.resources.nodes}", f"--nproc-per-node={processes(job)}", "--max-restarts=0"]


class Handle(Protocol):
    """A started job."""

    @property
    def id(self) -> str:
        """The engine's name for it (process number, container id, job id)."""
        ...

    def events(self) -> Iterator[dict[str, Any]]:
        """The stage's events as they come, until it ends. Lines that are no events become `log` events."""
        ...

    def wait(self) -> int:
        """Block until the end; the exit status (negative: killed by that signal)."""
        ...

    def stop(self, grace: float) -> None:
        """Ask the job to stop, and cut it off after `grace` seconds. Returns at once; safe to call twice."""
        ...


class Launcher(Protocol):
    """Starts jobs, and removes what a dead control plane left behind."""

    name: ClassVar[str]
    detached: ClassVar[bool]
    """Whether a job goes on without its control plane: one that comes back then adopts it (`adopt`)."""

    def start(self, job: Job) -> Handle:
        """Start a job. Raises InfraError when the engine cannot."""
        ...

    def adopt(self, id: str, job: Job) -> Handle | None:
        """Follow a job that another control plane started; None when it is over, or when jobs do not outlive theirs."""
        ...

    def reap(self, run_id: str | None = None) -> list[str]:
        """Stop jobs of a run (None: of runs whose control plane is dead); returns their ids."""
        ...
