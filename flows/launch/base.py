"""The Launcher protocol: what Docker, Slurm, Kubernetes and plain processes have in common."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, TypeVar, cast

from pydantic import BaseModel

from flows.data_files import load_toml
from flows.settings import directly, environment
from stages.core.errors import ConfigError, ExitClass
from stages.core.json_text import parsed_json
from stages.core.keys import sha256
from stages.core.messages import Secrets, StageRequest, StoredRequest
from stages.core.resources import Processes, Resources
from stages.lib.formats import source_credentials

_ENGINE_PYTHON = re.compile(r"MOXIN_[A-Z_]+_PYTHON")
_AWS_FILES = ("AWS_CA_BUNDLE", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE")
_AWS_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_AWS_HERE = (
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
)
"""Variables by which a machine or a pod knows itself: they say nothing anywhere else."""
_CA_BUNDLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
"""Variables that name files of this machine, which a container has not: their text goes along."""

CUT_OFF = 5
"""Seconds before its launcher would kill it at which a stage that did not stop ends itself, and what it started."""

GATHERING = 86_400
"""Seconds for which the nodes of an attempt wait for each other before their processes begin (torchrun has 600): one
pulls an image longer, or waits for a machine. Who ends while it waits is the launcher's to see.
"""

SiteType = TypeVar("SiteType", bound=BaseModel)


def load_site(model: type[SiteType], variable: str, default: Path, whose: str) -> SiteType:
    """Settings of the place where stages run: the file that a variable names, or the default. Raises ConfigError naming
    file and key.
    """
    path = Path(os.environ.get(variable) or default)
    try:
        return load_toml(model, path)
    except FileNotFoundError as error:
        raise ConfigError(f"no file {path}: {variable} must name the {whose}'s settings") from error
    except (OSError, UnicodeDecodeError) as error:
        reason = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else error.strerror or str(error)
        raise ConfigError(
            f"{path} cannot be read ({reason}): {variable} must name the TOML file with the {whose}'s settings"
        ) from error


@dataclass(frozen=True)
class Job:
    """One attempt to be run somewhere."""

    request: StageRequest
    resources: Resources
    env: str
    """Name of the environment (folder in containers/) whose image runs the stage."""
    processes: Processes = Processes.SINGLE
    """How its processes come to be, as its stage declares."""
    interpreter: str | None = None
    """The engine in whose own Python the stage runs (`Stage.interpreter`); None: in its environment's."""

    @property
    def ranks(self) -> int:
        """Processes of the stage on each node that a launcher starts. An engine starts its own: it is told how many
        (MOXIN_NPROC_PER_NODE).
        """
        return self.resources.ranks if self.processes is Processes.TORCHRUN else 1

    @property
    def labels(self) -> dict[str, str]:
        """What a container is marked with, so that orphans are variables. Never a secret."""
        request = self.request
        return {
            "moxin.run": request.run_id,
            "moxin.node": request.node,
            "moxin.key": request.key,
            "moxin.epoch": str(request.lease.epoch),
        }


_EVENT_FIELDS: dict[str, dict[str, Any]] = {
    "begun": {"at": (int, float)},
    "log": {"level": str, "message": str},
    "metric": {"step": int, "values": dict},
    "progress": {"done": (int, float)},
    "checkpoint": {"step": int},
    "done": {"exit": str, "message": str},
    "array": {},
}
"""The events of a stage with what they must have. A library may print JSON that looks like one."""


def parse_event(line: str, plain: bool = False) -> dict[str, Any]:
    """A line of a stage's output as an event: its own, or what a library printed as a `log` event of level debug."""
    event: Any = None
    if not plain:
        with contextlib.suppress(ValueError):
            event = parsed_json(line)
    event = cast("dict[str, Any]", event) if isinstance(event, dict) else {}
    fields = _EVENT_FIELDS.get(str(event.get("event")))
    if fields is None or not all(isinstance(event.get(name), kind) for name, kind in fields.items()) or _odd(event):
        return {"event": "log", "level": "debug", "message": line}
    if event["event"] == "done" and event["exit"] not in set(ExitClass):
        return {"event": "log", "level": "debug", "message": line}
    return event


def _odd(event: Mapping[str, Any]) -> bool:
    """Whether an event has something else where everybody who shows it takes a number."""
    values = event["values"].values() if event["event"] == "metric" else ()
    given = [event[name] for name in ("at", "step", "done", "total") if event.get(name) is not None]
    return any(not (isinstance(n, float) or (isinstance(n, int) and abs(n) < 1 << 63)) for n in (*given, *values))


def public_environment(job: Job) -> dict[str, str]:
    """What every stage is told, wherever it runs. Nothing secret: engines show it."""
    cache_bytes = environment().cache_bytes
    return {
        **({} if cache_bytes is None else {"MOXIN_CACHE_BYTES": str(cache_bytes)}),
        "PYTHONUNBUFFERED": "1",
        "PYTHONHASHSEED": "0",
        "OMP_NUM_THREADS": str(max(1, int(job.resources.cpus / job.resources.ranks))),
        # Waiting threads sleep: where two stages share the cores, threads that spin made each 30 times slower
        # (measured).
        "OMP_WAIT_POLICY": "passive",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        **directly(),  # engines speak to themselves over loopback
        "MOXIN_RUN": job.request.run_id,
        "MOXIN_NPROC_PER_NODE": str(job.resources.ranks),
        "MOXIN_GRACE_SECONDS": str(job.resources.grace_seconds - CUT_OFF),
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(job.resources.grace_seconds),  # else torchrun kills its ranks after 30 s
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # or gloo's processes now and then miss each other (pytorch#135712)
    }


def engine_pythons() -> dict[str, str]:
    """Where this machine has the Pythons of engines, for stages that run as its processes; images name their own
    (`containers/<engine>/Dockerfile`).
    """
    return {name: value for name, value in os.environ.items() if _ENGINE_PYTHON.fullmatch(name)}


def source_environment(job: Job) -> dict[str, str]:
    """What a stage reads raw sources with (stages/lib/formats/source_credentials.py), secret: nothing for a stage that
    may not reach the internet.
    """
    if job.resources.network != "internet":
        return {}
    variables = {
        name: os.environ[name]
        for name in (*source_credentials.VARIABLES, *source_credentials.PROXIES)
        if os.environ.get(name)
    }
    if "HF_TOKEN" not in variables and (token := _stored_token()):
        variables["HF_TOKEN"] = token
    if any(name in variables for name in ("HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy")):
        direct = _proxy_exceptions(job.request.store.endpoint)
        for name in ("NO_PROXY", "no_proxy"):  # some libraries read the one, some the other
            variables[name] = ",".join(filter(None, (variables.get(name) or variables.get(name.swapcase()), *direct)))
    return variables


def _stored_token() -> str:
    """The token that `hf auth login` left here (huggingface_hub's documentation, "Environment variables"); or none."""
    home = Path(
        os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    )
    try:
        return Path(os.environ.get("HF_TOKEN_PATH") or home / "token").read_text(encoding="utf-8").strip()
    except (OSError, RuntimeError, UnicodeDecodeError):  # RuntimeError: no home
        return ""


def _proxy_exceptions(endpoint: str | None) -> list[str]:
    """This machine, and a store beside it: no proxy leads there."""
    host = urllib.parse.urlsplit(endpoint or "").hostname or ""
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(host).is_private:
            return list(dict.fromkeys(["localhost", "127.0.0.1", "::1", host]))
    return ["localhost", "127.0.0.1", "::1"]


def secrets_of(
    job: Job, credentials: Mapping[str, str], identity: Literal["copied", "account", "files"] = "copied"
) -> Secrets:
    """Credentials of the store, and those of sources, for a job that runs in another file system than this process.

    identity: whose credentials of the store a job uses: copies of this process's, which nobody renews; those of the
    account that it runs under; or those of files and roles that lie on its machine as here. Raises ConfigError when
    this process has nothing that could be copied.
    """
    if identity == "account":
        credentials = {name: value for name, value in credentials.items() if not name.startswith("AWS_")} | {
            name: value for name, value in credentials.items() if name == "AWS_CA_BUNDLE"
        }
    elif identity == "files":
        of_sources = secrets_of(job, {})
        as_here = {name: value for name, value in credentials.items() if name not in _AWS_KEYS}
        return Secrets(environment=as_here | of_sources.environment, files=of_sources.files)
    elif any(name in credentials for name in _AWS_HERE) and not any(name in credentials for name in _AWS_KEYS):
        raise ConfigError(
            f"node {job.request.node}: this process knows the store by its own identity"
            f" ({next(name for name in _AWS_HERE if name in credentials)}), which no other machine can use: set"
            " identity in the site's file"
        )
    else:
        credentials = {name: value for name, value in credentials.items() if name not in _AWS_HERE}
    variables = {**credentials, **source_environment(job)}
    if job.resources.network == "internet":
        variables |= {name: os.environ[name] for name in _CA_BUNDLES if name in os.environ}
    paths = {
        name: variables[name] for name in (*_AWS_FILES, *_CA_BUNDLES, source_credentials.FILE) if name in variables
    }
    files = {name: Path(path).read_text(encoding="utf-8") for name, path in paths.items() if Path(path).is_file()}
    return Secrets(environment={name: value for name, value in variables.items() if name not in paths}, files=files)


def stored_request(job: Job) -> tuple[StoredRequest, bytes]:
    """Where a job's request is to lie in the store, and its bytes: a job of another machine gets no more than that."""
    request = job.request
    body = request.model_dump_json().encode()
    name = f"requests/{request.key}/{request.lease.epoch:06d}.json"
    return StoredRequest(store=request.store, object=name, sha256=sha256(body)), body


def torchrun(job: Job, *rendezvous: str) -> list[str]:
    """What stands before `-m stages.core.runtime` where a launcher starts several processes; nothing where it starts
    one.

    A lost process ends them all: the next attempt resumes.
    """
    if job.resources.nodes * job.ranks == 1:
        return []
    return [
        "-m",
        "torch.distributed.run",
        *rendezvous,
        *([f"--rdzv-conf=timeout={GATHERING}"] if job.resources.nodes > 1 else []),
        f"--nnodes={job.resources.nodes}",
        f"--nproc-per-node={job.ranks}",
        "--max-restarts=0",
    ]


def with_provenance(job: Job, *, image: str | None = None, image_digest: str | None = None) -> Job:
    """The job with what its result will say of the environment that ran it. image: what it runs in; None: this
    installation, or an engine's Python.
    """
    from flows import environments  # not for who only plans: it reads the requirements of packages

    engine = environments.engine_lock_digest(str(job.request.config.get("engine", "")))
    if job.interpreter:
        lock, engine = environments.engine_lock_digest(job.interpreter), None
    else:
        lock = environments.installation_lock_digest() if image is None else environments.lock_digest(job.env)
    environment = {"lock_digest": lock, "engine_lock_digest": engine, "image": image, "image_digest": image_digest}
    return replace(
        job, request=job.request.model_copy(update={"code": job.request.code.model_copy(update=environment)})
    )


class Handle(Protocol):
    """A started job."""

    @property
    def id(self) -> str:
        """Its name where it runs (process number, container id, job id)."""
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
    """Whether a job goes on without its control plane: one that comes back then takes it over (`take_over`)."""

    def start(self, job: Job) -> Handle:
        """Start a job. Raises InfraError when it cannot."""
        ...

    def take_over(self, id: str, job: Job) -> Handle | None:
        """Follow a job that another control plane started; None when it is over, or when jobs do not outlive theirs."""
        ...

    def reap(self, run_id: str | None = None) -> list[str]:
        """Stop jobs of a run (None: of runs whose control plane is dead); returns their ids."""
        ...
