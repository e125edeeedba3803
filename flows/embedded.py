"""The services of `moxin up`: SeaweedFS (S3), a Prefect server on SQLite, a worker. On loopback, with generated keys.

State lives under MOXIN_HOME: services.json (ports, process identities), credentials.json (mode 0600), logs/, data.
Every process is known by number *and* start time, so a stale file never leads to somebody else's process.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.settings import BUCKET, QUIET, ROOT, Settings, home, read_json
from stages.core.contracts import ConfigError, InfraError, StageError
from stages.core.ledger import process_alive, process_identity
from stages.core.store import Store

PORTS = {"s3": 8333, "master": 9333, "volume": 9340, "filer": 8888, "prefect": 4200}
"""Preferred ports. SeaweedFS also takes each of its own plus 10,000 for gRPC; another is chosen where one is taken."""
START_SECONDS = 120.0
POOL = "moxin"
ENV_BEGIN, ENV_END = "# >>> moxin up", "# <<< moxin up"


@dataclass(frozen=True)
class Service:
    """One service as `moxin status` shows it."""

    name: str
    address: str
    pid: int
    healthy: bool
    memory_mib: int
    log: str


def up(
    after_server: Callable[[Settings], object] | None = None,
    say: Callable[[str], None] = print,
    folder: Path | None = None,
) -> Settings:
    """Start what is not running yet; returns the settings to use it. Idempotent, safe to call from several shells.

    after_server: called once whenever the Prefect server was started anew (registers the deployments).
    Raises InfraError naming the log when a service does not come up.
    """
    folder = folder or home()
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        state = read_json(folder / "services.json")
        keys = _credentials(folder)
        started: list[str] = []
        external_store, external_prefect = _external(state)
        try:
            if not external_store and not _alive(state, "store"):
                _start(folder, state, "store", *_store_command(folder, state, keys), say)
                started.append("store")
            if not external_prefect and not _alive(state, "prefect"):
                _start(folder, state, "prefect", *_prefect_command(folder, state, keys), say)
                started.append("prefect")
            settings = Settings.load(folder)
            if "store" in started:
                _wait(folder, state, "store", lambda: _store_ready(settings))
            if "prefect" in started:
                _wait(folder, state, "prefect", lambda: _prefect_ready(settings))
            if not external_prefect:
                _configure(settings)
                code = _code_digest()
                if after_server is not None and ("prefect" in started or state.get("registered") != code):
                    say("registering the deployments")
                    os.environ.update(settings.environment())
                    after_server(settings)
                    state["registered"] = code
                if not _alive(state, "worker"):
                    _start(folder, state, "worker", *_worker_command(settings), say)
                    started.append("worker")
                _write_env((ROOT if folder == ROOT / ".moxin" else folder) / ".env", settings)
            _save(folder, state)
        except BaseException:
            for name in reversed(started):
                _stop(state, name)
            _save(folder, state)
            raise
    if started:
        say(f"store {settings.store.endpoint}, Prefect {settings.prefect_ui_url} (password: moxin status --password)")
    return settings


def down(folder: Path | None = None) -> list[str]:
    """Stop the services, worker first; returns the names of those that ran."""
    folder = folder or home()
    if not folder.is_dir():
        return []
    with _locked(folder):
        state = read_json(folder / "services.json")
        stopped = [name for name in ("worker", "prefect", "store") if _stop(state, name)]
        _save(folder, state)
    return stopped


def status(folder: Path | None = None) -> list[Service]:
    """The services that run, with where each one listens."""
    folder = folder or home()
    state = read_json(folder / "services.json")
    if not any(_alive(state, name) for name in ("store", "prefect", "worker")):
        return []
    settings = Settings.load(folder)
    checks: dict[str, tuple[str, Callable[[], bool]]] = {
        "store": (str(settings.store.endpoint), lambda: _store_ready(settings)),
        "prefect": (settings.prefect_ui_url, lambda: _prefect_ready(settings)),
        "worker": ("listens nowhere; asks the server for work", lambda: True),
    }
    rows = []
    for name, (address, check) in checks.items():
        if _alive(state, name):
            pid = int(state[name].partition(":")[0])
            rows.append(Service(name, address, pid, check(), _memory(pid), str(folder / "logs" / f"{name}.log")))
    return rows


def password(folder: Path | None = None) -> str:
    """What the Prefect pages ask for at the first visit."""
    return str(read_json((folder or home()) / "credentials.json").get("prefect_auth", ""))


# --- state ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One `up` or `down` at a time."""
    with open(folder / "lock", "w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _save(folder: Path, state: dict[str, Any]) -> None:
    partial = folder / "services.json.new"
    partial.write_text(json.dumps(state, indent=1), encoding="utf-8")
    partial.replace(folder / "services.json")


def _credentials(folder: Path) -> dict[str, str]:
    """The generated keys: made once, readable by the owner alone."""
    path = folder / "credentials.json"
    found = read_json(path)
    if not found:
        found = {
            "s3_access_key": f"moxin{secrets.token_hex(8)}",
            "s3_secret_key": secrets.token_hex(24),
            "prefect_auth": f"moxin:{secrets.token_hex(12)}",
        }
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as stream:
            json.dump(found, stream)
    return found


def _external(state: dict[str, Any]) -> tuple[bool, bool]:
    """Whether the user brings a store, and whether a Prefect server, of their own."""
    store = bool(os.environ.get("MOXIN_S3_ENDPOINT") or os.environ.get("MOXIN_S3_BUCKET"))
    api = os.environ.get("PREFECT_API_URL")
    return store, bool(api) and api != f"http://127.0.0.1:{state.get('prefect_port', PORTS['prefect'])}/api"


def _code_digest() -> str:
    """Changes when deployments might: then they are registered again."""
    from stages.core.keys import sha256

    files = [ROOT / "stages" / "pipeline.py", ROOT / "flows" / "moxin.py", ROOT / "flows" / "deploy.py"]
    files += sorted((ROOT / "infra" / "profiles").glob("*.toml"))
    return sha256(b"\0".join(path.read_bytes() for path in files) + str(ROOT).encode())


# --- processes ------------------------------------------------------------------------------------------------------


def _alive(state: dict[str, Any], name: str) -> bool:
    return bool(state.get(name)) and process_alive(state[name])


def _start(
    folder: Path, state: dict[str, Any], name: str, command: list[str], env: dict[str, str], say: Callable[[str], None]
) -> None:
    say(f"starting {name}")
    log = folder / "logs" / f"{name}.log"
    log.parent.mkdir(exist_ok=True)
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "AWS_"))}

    def child() -> None:  # a shell may have set SIGINT to be ignored, and the worker would then not stop on SIGTERM
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with open(log, "ab") as stream:
        stream.write(f"--- {name} started {time.strftime('%F %T')}\n".encode())
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=clean | QUIET | env,
            cwd=folder if name == "store" else ROOT,
            start_new_session=True,
            preexec_fn=child,
        )
    state[name] = process_identity(process.pid)
    _save(folder, state)


def _stop(state: dict[str, Any], name: str, seconds: float = 20.0) -> bool:
    """Stop a service: TERM, then KILL for its whole group. False when it did not run."""
    identity = state.pop(name, None)
    if not identity or not process_alive(identity):
        return False
    pid = int(identity.partition(":")[0])
    for sig, limit in ((signal.SIGTERM, seconds), (signal.SIGKILL, 5.0)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, sig)
        deadline = time.monotonic() + limit
        while time.monotonic() < deadline:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
            if not process_alive(identity):
                return True
            time.sleep(0.05)
    return True


def _wait(folder: Path, state: dict[str, Any], name: str, ready: Callable[[], bool]) -> None:
    """Wait until a service answers. Raises InfraError with the end of its log when it dies or takes too long."""
    deadline = time.monotonic() + START_SECONDS
    log = folder / "logs" / f"{name}.log"
    while time.monotonic() < deadline:
        if not _alive(state, name):
            break
        if ready():
            return
        time.sleep(0.1)
    tail = " | ".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-3:])
    raise InfraError(f"{name} did not come up; the end of {log}: {tail}")


def _memory(pid: int) -> int:
    """Resident memory in MiB of a process and its children."""
    total = 0
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if entry.name == str(pid) or fields[3] == str(pid):  # the service or one of its session
                total += int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
    return total >> 20


def _free(port: int, *offsets: int) -> bool:
    """Whether a port (and port + each offset) can be bound on loopback."""
    for offset in (0, *offsets):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port + offset))
            except OSError:
                return False
    return True


def _choose(state: dict[str, Any], name: str, *offsets: int, avoid: set[int]) -> int:
    """The remembered or preferred port if it is free, else the next free one (below 55,535, for gRPC's sake)."""
    first = int(state.get(f"{name}_port", PORTS[name]))
    for port in (first, *range(first + 1, first + 2000)):
        if port < 55535 and not avoid & {port, *(port + o for o in offsets)} and _free(port, *offsets):
            avoid |= {port, *(port + o for o in offsets)}
            state[f"{name}_port"] = port
            return port
    raise InfraError(f"no free port for {name} between {first} and {first + 2000}")


# --- the three services ---------------------------------------------------------------------------------------------


def _store_command(folder: Path, state: dict[str, Any], keys: dict[str, str]) -> tuple[list[str], dict[str, str]]:
    weed = Path(sys.executable).with_name("weed")
    if not weed.exists():
        raise ConfigError(f"no SeaweedFS beside {sys.executable}: install the locked requirements ('make setup')")
    taken: set[int] = set()
    ports = {name: _choose(state, name, 10000, avoid=taken) for name in ("s3", "master", "volume", "filer")}
    data = folder / "store"
    data.mkdir(exist_ok=True)
    command = [str(weed), f"-logdir={folder / 'logs'}", "mini", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
    command += [f"-{name}.port={port}" for name, port in ports.items()]
    command += ["-webdav=false", "-admin.ui=false", "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"]
    command += [f"-bucket={BUCKET}", "-filer.disableDirListing", f"-s3.allowedOrigins=http://127.0.0.1:{ports['s3']}"]
    env = {
        "AWS_ACCESS_KEY_ID": keys["s3_access_key"],
        "AWS_SECRET_ACCESS_KEY": keys["s3_secret_key"],
        "GOMEMLIMIT": "600MiB",  # holds the store under 0.7 GB at 1 GiB uploads (facts/orchestration.md 7)
    }
    return command, env


def _store_ready(settings: Settings) -> bool:
    """A real conditional PUT, not a health page: the store answers before it can be written to."""
    if settings.store.endpoint:
        host, _, port = settings.store.endpoint.removeprefix("http://").partition(":")
        with socket.socket() as probe:  # cheap first look: botocore retries a refused connection for seconds
            if probe.connect_ex((host, int(port))) != 0:
                return False
    os.environ.update(settings.store_environment())
    try:
        Store(settings.store).probe()
    except StageError:
        return False
    return True


def _prefect_env(folder: Path, port: int, auth: str) -> dict[str, str]:
    return {
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_API_AUTH_STRING": auth,
        "PREFECT_SERVER_API_AUTH_STRING": auth,
        "PREFECT_SERVER_API_HOST": "127.0.0.1",
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_UI_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    }


def _prefect_command(folder: Path, state: dict[str, Any], keys: dict[str, str]) -> tuple[list[str], dict[str, str]]:
    port = _choose(state, "prefect", avoid=set())
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    return command, _prefect_env(folder, port, keys["prefect_auth"])


def _prefect_ready(settings: Settings) -> bool:
    try:
        return _api(settings, "GET", "/health") is not None
    except OSError:
        return False


def _worker_command(settings: Settings) -> tuple[list[str], dict[str, str]]:
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process", "--name", "embedded"]
    env = settings.environment() | {"PREFECT_WORKER_QUERY_SECONDS": "1", "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}
    return command, env


def _configure(settings: Settings) -> None:
    """The work pool, and the automation that ends runs whose process died without a word."""
    if _api(settings, "GET", f"/work_pools/{POOL}", missing_ok=True) is None:
        _api(settings, "POST", "/work_pools/", {"name": POOL, "type": "process"})
    name = "moxin: crash runs that stopped sending heartbeats"
    found = _api(settings, "POST", "/automations/filter", {"automations": {"name": {"any_": [name]}}}) or []
    if found:
        return
    ended = [f"prefect.flow-run.{s}" for s in ("Completed", "Failed", "Cancelled", "Crashed")]
    _api(
        settings,
        "POST",
        "/automations/",
        {
            "name": name,
            "description": "A flow run whose process or machine died is marked Crashed, so that it can be retried.",
            "enabled": True,
            "trigger": {
                "type": "event",
                "posture": "Proactive",
                "after": ["prefect.flow-run.heartbeat"],
                "expect": ["prefect.flow-run.heartbeat", *ended],
                "match": {"prefect.resource.id": ["prefect.flow-run.*"]},
                "for_each": ["prefect.resource.id"],
                "threshold": 1,
                "within": 90,
            },
            "actions": [
                {"type": "change-flow-run-state", "state": "CRASHED", "message": "Its process or machine died: no heartbeat for 90 s."}
            ],
        },
    )


def _api(settings: Settings, method: str, path: str, body: Any = None, missing_ok: bool = False) -> Any:
    """One call of the Prefect API. Plain HTTP: importing Prefect's client takes two seconds."""
    request = urllib.request.Request(settings.prefect_api_url + path, method=method)
    if settings.prefect_auth:
        request.add_header("Authorization", "Basic " + base64.b64encode(settings.prefect_auth.encode()).decode())
    data = None if body is None else json.dumps(body).encode()
    request.add_header("Content-Type", "application/json")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, data, timeout=20) as answer:
            return json.loads(answer.read() or b"null")
    except urllib.error.HTTPError as error:
        if missing_ok and error.code == 404:
            return None
        detail = error.read().decode("utf-8", "replace")[:300]
        raise InfraError(f"the Prefect server refused {method} {path}: HTTP {error.code} {detail}") from error


def _write_env(path: Path, settings: Settings) -> None:
    """Keep our block of `.env` current: Prefect's own commands read it when run from the repository's root.

    Only the services of the default state folder are written there; those of another one (MOXIN_HOME) keep theirs inside it.
    """
    old = path.read_text(encoding="utf-8") if path.is_file() else ""
    if ENV_BEGIN in old:
        old = old[: old.index(ENV_BEGIN)] + old[old.index(ENV_END) + len(ENV_END) :].lstrip("\n")
    lines = [ENV_BEGIN, f"PREFECT_API_URL={settings.prefect_api_url}", f"PREFECT_API_AUTH_STRING={settings.prefect_auth or ''}", ENV_END]
    new = old + ("" if not old or old.endswith("\n") else "\n") + "\n".join(lines) + "\n"
    if not path.is_file() or path.read_text(encoding="utf-8") != new:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as stream:
            stream.write(new)
