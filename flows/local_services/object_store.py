"""The object store of `moxin up`: SeaweedFS in one process."""

from __future__ import annotations

import os
import secrets
import socket
import sys
from pathlib import Path

from flows.local_services import ports
from flows.local_services.ports import Claims
from flows.local_services.processes import Launch, State
from flows.settings import BUCKET, Settings
from stages.core.errors import ConfigError, StageError

PORTS, GRPC = {"s3": 8333, "master": 9333, "volume": 9340, "filer": 8888}, 10_000
"""Preferred ports. SeaweedFS also takes each of its own plus GRPC; another is chosen where one is taken. Its processes
talk by sockets in /tmp that are named by the ports: two stores of one /tmp need different ones also where each has a
network namespace of its own (SeaweedFS 4.48; seen: one answered 500 from then on).
"""


def command(folder: Path, state: State, keys: dict[str, str]) -> Launch:
    weed = Path(sys.executable).with_name("weed")
    if not weed.exists():
        raise ConfigError(f"no SeaweedFS beside {sys.executable}: install the locked requirements ('make setup')")
    claims: Claims = {}
    chosen = {
        name: ports.choose(state, name, PORTS[name], (GRPC,), claims) for name in ("s3", "master", "volume", "filer")
    }
    data = folder / "store"
    data.mkdir(exist_ok=True)
    command = [str(weed), f"-logdir={folder / 'logs'}", "mini", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
    command += [f"-{name}.port={port}" for name, port in chosen.items()]
    command += ["-webdav=false", "-admin.ui=false", "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"]
    command += [f"-bucket={BUCKET}", "-filer.disableDirListing", f"-s3.allowedOrigins=http://127.0.0.1:{chosen['s3']}"]
    env = {
        "AWS_ACCESS_KEY_ID": keys["s3_access_key"],
        "AWS_SECRET_ACCESS_KEY": keys["s3_secret_key"],
        "GOMEMLIMIT": "600MiB",  # measured: holds the store under 0.7 GB while 1 GiB is uploaded
    }
    return command, env, claims


def ready(settings: Settings) -> bool:
    """A real conditional PUT, not a health page: the store answers before it can be written to.

    Only ours takes our keys and refuses others: another store on the port may take any.
    """
    from stages.core.store import Store

    if settings.store.endpoint:
        host, _, port = settings.store.endpoint.removeprefix("http://").partition(":")
        with socket.socket() as probe:  # cheap first look: botocore retries a refused connection for seconds
            if probe.connect_ex((host, int(port))) != 0:
                return False
    os.environ.update(settings.store_environment())
    try:
        Store(settings.store, patience=0).probe()
        return refuses_unknown_keys(settings)
    except StageError:
        return False


def refuses_unknown_keys(settings: Settings) -> bool:
    """Whether the store refuses keys that were never given out."""
    import boto3
    from botocore.config import Config

    from stages.core.store import Store

    client = boto3.client(
        "s3",
        endpoint_url=settings.store.endpoint,
        region_name=settings.store.region,
        aws_access_key_id=f"stranger{secrets.token_hex(8)}",
        aws_secret_access_key=secrets.token_hex(24),
        config=Config(s3={"addressing_style": "path"}, retries={"max_attempts": 0}, connect_timeout=5),
    )
    try:
        Store(settings.store, client, patience=0).get("nothing")
    except ConfigError:
        return True
    return False
