"""Start, stop and show the local services."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from flows import lost_runs
from flows.data_files import DATA
from flows.local_services import object_store, ports, prefect, processes, state_file
from flows.local_services.processes import Launch, State, alive
from flows.settings import BUCKET, Settings, environment, home, read_json
from stages.core.disk import nearly_full, no_space
from stages.core.errors import InfraError
from stages.core.files import ROOT
from stages.core.messages import StoreAddress

START_SECONDS = 600.0
"""Against hangs alone: a service that dies while it starts is noticed at once."""
FATAL = re.compile(r"F\d{4} ")
"""What SeaweedFS begins the line with that says why it ends; the stacks of all its threads come after it."""
TRIES = 3
"""How often a service is started on other ports when a program that makes no claims takes one in between."""


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
    after_server: Callable[[Settings, Callable[[str], None]], object] | None = None,
    say: Callable[[str], None] = print,
    folder: Path | None = None,
) -> Settings:
    """Start what is not running yet; returns the settings to use it. Idempotent, safe to call from several shells.

    after_server: called once whenever the Prefect server was started anew (registers the deployments).
    Raises InfraError naming the log when a service does not come up.
    """
    folder = folder or home()
    folder.mkdir(parents=True, exist_ok=True)
    with state_file.locked(folder):
        state = state_file.load(folder, say)
        keys = state_file.credentials(folder)
        started: list[str] = []
        external_store, external_prefect = _external(state)
        commands: dict[str, Callable[[], Launch]] = {
            "store": lambda: object_store.command(folder, state, keys),
            "prefect": lambda: prefect.server_command(folder, state, keys),
        }
        ready: dict[str, Callable[[Settings], bool]] = {"store": object_store.ready, "prefect": prefect.ready}
        try:
            for name, external in (("store", external_store), ("prefect", external_prefect)):
                if not external and not alive(state, name):
                    start(folder, state, name, commands[name](), say)
                    started.append(name)
            for name in list(started):
                bring_up(folder, state, name, commands[name], ready[name], say)
            settings = Settings.load(folder)
            if not external_prefect:
                prefect.configure(settings)
                code, known = _code_digest(), state.get("registered")
                registered = cast("dict[str, str]", known) if isinstance(known, dict) else {}
                if after_server is not None and ("prefect" in started or registered.get(str(ROOT)) != code):
                    say("registering the deployments")
                    os.environ.update(settings.environment())
                    after_server(settings, say)
                    state["registered"] = registered | {str(ROOT): code}
                if not alive(state, "worker"):
                    start(folder, state, "worker", prefect.worker_command(settings), say)
                    started.append("worker")
                for text in _close_lost_runs(settings, state["worker"]):
                    say(text)
                prefect.write_env((ROOT if folder == ROOT / ".moxin" else folder) / ".env", settings)
            state_file.save(folder, state)
        except BaseException:
            for name in reversed(started):
                processes.stop(state, name)
            state_file.save(folder, state)
            raise
    if started:
        say(f"store {settings.store.endpoint}, Prefect {settings.prefect_ui_url} (password: moxin status --password)")
    return settings


def down(folder: Path | None = None) -> list[str]:
    """Stop the services, worker first; returns the names of those that ran."""
    folder = folder or home()
    if not folder.is_dir():
        return []
    with state_file.locked(folder):
        state = state_file.load(folder, lambda line: None)
        stopped = [name for name in ("worker", "prefect", "store") if processes.stop(state, name)]
        state_file.save(folder, state)
    return stopped


def status(folder: Path | None = None) -> list[Service]:
    """The services that run, with where each one listens."""
    folder = folder or home()
    if not folder.is_dir():
        return []
    state = state_file.load(folder, lambda line: None)
    if not any(alive(state, name) for name in processes.MARKS):
        return []
    with (
        contextlib.suppress(BlockingIOError),
        state_file.locked(folder, wait=False),
    ):  # who is at `up` or `down` writes it down anyway
        state_file.save(folder, state)
    settings = Settings.load(folder)
    checks: dict[str, tuple[str, Callable[[], bool]]] = {
        "store": (str(settings.store.endpoint), lambda: object_store.ready(settings)),
        "prefect": (settings.prefect_ui_url, lambda: prefect.ready(settings)),
        "worker": ("listens nowhere; asks the server for work", lambda: True),
    }
    rows: list[Service] = []
    for name, (address, check) in checks.items():
        if alive(state, name):
            pid = int(state[name].partition(":")[0])
            rows.append(
                Service(name, address, pid, check(), processes.memory(pid), str(folder / "logs" / f"{name}.log"))
            )
    return rows


def close_lost_runs(folder: Path | None = None) -> list[str]:
    """Close the flow runs that nobody works on any more, as `up` does; one line for each. None where the services of
    this folder do not run, or the Prefect server is the user's own.
    """
    folder = folder or home()
    state = state_file.load(folder, lambda line: None)
    if _external(state)[1] or not (alive(state, "prefect") and alive(state, "worker")):
        return []
    api = f"http://127.0.0.1:{state['prefect_port']}/api"  # whatever store there is, or none
    try:
        nowhere = StoreAddress(bucket=BUCKET, endpoint=None)
        return _close_lost_runs(Settings(folder, nowhere, api, True, False, {}, password(folder)), state["worker"])
    except InfraError as error:
        return [f"runs that may be lost could not be looked for: {error}"]


def _close_lost_runs(settings: Settings, worker: str) -> list[str]:
    return lost_runs.close(functools.partial(prefect.call_api, settings), prefect.POOL, worker)


def password(folder: Path | None = None) -> str:
    """What the Prefect pages ask for at the first visit."""
    return str(read_json((folder or home()) / "credentials.json").get("prefect_auth", ""))


def _external(state: State) -> tuple[bool, bool]:
    """Whether the user brings a store, and whether a Prefect server, of their own."""
    env = environment()
    api = env.prefect_api_url
    return env.external_store, bool(api) and api != f"http://127.0.0.1:{state.get('prefect_port')}/api"


def _code_digest() -> str:
    """Changes when deployments and their forms might: then they are registered again."""
    from stages.core.keys import sha256

    flows, stages = ROOT / "flows", ROOT / "stages"
    files = [stages / "pipeline.py", flows / "deploy.py", flows / "form.py", flows / "node_form.py"]
    files += [flows / "flow.py", flows / "sweep.py", flows / "rehearsal" / "run.py"]
    files += [*sorted(stages.glob("*/spec.py")), *sorted((stages / "lib").rglob("*.py"))]
    files += sorted((DATA / "infra" / "profiles").glob("*.toml"))
    return sha256(b"\0".join(path.read_bytes() for path in files) + str(ROOT).encode())


def start(folder: Path, state: State, name: str, launch: Launch, say: Callable[[str], None]) -> None:
    processes.start(folder, state, name, *launch, say)
    state_file.save(folder, state)


def bring_up(
    folder: Path,
    state: State,
    name: str,
    command: Callable[[], Launch],
    ready: Callable[[Settings], bool],
    say: Callable[[str], None],
) -> None:
    """Wait until a started service answers; where another program took its port in between, start it on another."""
    for attempt in range(TRIES):
        try:
            wait(folder, state, name, lambda: ready(Settings.load(folder)))
            return
        except InfraError:
            if attempt == TRIES - 1 or alive(state, name) or not _lost_a_port(folder, state, name):
                raise
            say(f"another program has taken a port of {name} meanwhile")
            start(folder, state, name, command(), say)


def _lost_a_port(folder: Path, state: State, name: str) -> bool:
    """Whether a service that died at its start did so for a port of its own: another program has it, or had it then. Of
    the range that the kernel gives to outgoing connections a port may be taken for a moment.
    """
    bound = [
        port + offset
        for key, port in state.items()
        if key.endswith("_port") and (key == "prefect_port") == (name == "prefect")
        for offset in ((0,) if name == "prefect" else (0, object_store.GRPC))
    ]
    return not all(map(ports.free, bound)) or "address already in use" in processes.said(folder, name).lower()


def wait(folder: Path, state: State, name: str, ready: Callable[[], bool]) -> None:
    """Wait until a service answers. Raises InfraError with the reason, or the end of its log, when it dies or takes too
    long.
    """
    deadline = time.monotonic() + START_SECONDS
    log = folder / "logs" / f"{name}.log"
    while time.monotonic() < deadline:
        if not alive(state, name):
            break
        if ready():
            return
        time.sleep(0.1)
    lines = processes.said(folder, name).splitlines()
    fatal = [line for line in lines if FATAL.match(line)]
    tail = " | ".join(fatal[-1:] or lines[-3:])
    full = f"{no_space(folder)}. " if nearly_full(folder) else ""
    raise InfraError(f"{full}{name} did not come up; the end of {log}: {tail}")
