"""services.json and credentials.json of a state folder, and the lock on both."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
from collections.abc import Callable, Generator
from pathlib import Path

from flows.local_services import processes
from flows.local_services.processes import State, alive
from flows.settings import read_json
from stages.core.errors import ConfigError
from stages.core.files import write_atomically


@contextlib.contextmanager
def locked(folder: Path, wait: bool = True) -> Generator[None]:
    """One `up` or `down` at a time. Raises BlockingIOError where there is one and it is not to be waited for."""
    with open(folder / "lock", "w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def load(folder: Path, say: Callable[[str], None]) -> State:
    """What is known of the services. Where the file is lost or damaged, or a service it names is gone, those that run
    are looked for.
    """
    path = folder / "services.json"
    try:
        state = read_json(path)
    except ConfigError as error:
        say(f"{error}: it is now {path.name}.damaged, and the services are looked for")
        path.replace(path.with_name(f"{path.name}.damaged"))
        state = State()
    if any(not alive(state, name) for name in processes.MARKS):
        running, _ = processes.find(folder)
        for name in processes.MARKS:
            if name in running and not alive(state, name):
                pid = running[name].partition(":")[0]
                say(f"{name} runs already, though {path.name} did not name it (process {pid})")
                state |= {name: running[name]} | {key: value for key, value in running.items() if key.endswith("_port")}
    return state


def save(folder: Path, state: State) -> None:
    write_atomically(folder / "services.json", json.dumps(state, indent=1))


def credentials(folder: Path) -> dict[str, str]:
    """The keys: generated once, readable by the owner alone. If they are lost: those of the services that run."""
    path = folder / "credentials.json"
    keys = read_json(path)
    if not keys:
        keys = {
            "s3_access_key": f"moxin{secrets.token_hex(8)}",
            "s3_secret_key": secrets.token_hex(24),
            "prefect_auth": f"moxin:{secrets.token_hex(12)}",
        } | processes.find(folder)[1]
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as stream:
            json.dump(keys, stream)
    return keys
