"""An object store of a test's own that may be killed, stopped, and set back to what lay on its disk a moment ago."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from flows.local_services import lifecycle, object_store, processes, state_file
from flows.settings import BUCKET, Settings
from stages.core.messages import StoreAddress


class OwnStore:
    """It is started again at the same ports."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.state = folder, dict[str, Any]()
        # below 32,768, also with the 10,000 more for gRPC: of those above the kernel gives some to outgoing connections
        first = 12_000 + 100 * (os.getpid() % 50)
        self.state |= {f"{name}_port": first + 41 * i for i, name in enumerate(("s3", "master", "volume", "filer"))}
        self.keys = state_file.credentials(folder)
        self.start()

    def start(self) -> None:
        launch = object_store.command(self.folder, self.state, self.keys)
        lifecycle.start(self.folder, self.state, "store", launch, lambda line: None)
        self.settings = Settings(
            home=self.folder,
            store=StoreAddress(bucket=BUCKET, endpoint=f"http://127.0.0.1:{self.state['s3_port']}"),
            prefect_api_url="http://127.0.0.1:9/api",
            external_store=True,
            external_prefect=False,
            credentials={
                "AWS_ACCESS_KEY_ID": self.keys["s3_access_key"],
                "AWS_SECRET_ACCESS_KEY": self.keys["s3_secret_key"],
            },
        )
        lifecycle.wait(self.folder, self.state, "store", lambda: object_store.ready(self.settings))

    @property
    def pid(self) -> int:
        return int(str(self.state["store"]).partition(":")[0])

    def revive(self) -> None:
        """As `moxin up` does it at the next command."""
        if not processes.alive(self.state, "store"):
            self.start()

    def snapshot(self) -> Path:
        """Its disk as it is at one moment, beside it."""
        copy = self.folder / "store-of-before"
        os.kill(self.pid, signal.SIGSTOP)
        try:
            shutil.copytree(self.folder / "store", copy)
        finally:
            os.kill(self.pid, signal.SIGCONT)
        return copy

    def set_back(self, copy: Path) -> None:
        """The power goes; what had not come to the disk by the time of the copy was never there."""
        with suppress(ProcessLookupError, psutil.NoSuchProcess):
            os.kill(self.pid, signal.SIGKILL)
            psutil.Process(self.pid).wait(10)
        shutil.rmtree(self.folder / "store")
        copy.rename(self.folder / "store")
        self.revive()


@contextmanager
def own_store(folder: Path) -> Iterator[OwnStore]:
    """A store for as long as the block lasts."""
    environment = dict(os.environ)
    store = OwnStore(folder)
    try:
        yield store
    finally:
        processes.stop(store.state, "store", 0.0)
        os.environ.clear()
        os.environ.update(environment)
