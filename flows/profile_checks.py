"""What of a profile must fit together: configuration, resources and launcher tell the same of processes and GPUs. And
what should not stand in one.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any, cast

from stages.core.config import StageConfig
from stages.core.errors import ConfigError
from stages.core.graph import Node
from stages.core.resources import Processes, Resources
from stages.lib.formats.uris import shown

ONE_MACHINE = ("process", "docker")
"""Launchers that cannot bring several machines together: all their nodes share one."""


def origin_of(origin: Mapping[str, str], *paths: str) -> str:
    """Where a setting came from: the first of the paths that is known, else the nearest table around one of them."""
    while not any(path in origin for path in paths):
        paths = tuple(path.rpartition(".")[0] for path in paths)
    return next(origin[path] for path in paths if path in origin)


def check_processes(
    node: Node, config: StageConfig, resources: Resources, launcher: str, origin: Mapping[str, str]
) -> None:
    """Configuration, resources and launcher must tell the same of processes, GPUs and nodes."""
    name, kind = node.name, node.processes(config)
    file = origin_of(origin, *(f"{table}.{key}" for table in ("resources", "node") for key in (name, node.stage)))
    engine = f" with engine '{config.engine}'" if hasattr(config, "engine") else ""  # type: ignore[attr-defined]
    if kind is not Processes.TORCHRUN and resources.nodes > 1:
        raise ConfigError(
            f"{file}: resources.{name}.nodes = {resources.nodes}, but stage '{node.stage}'{engine} works on one node:"
            " set 1"
        )
    if launcher in ONE_MACHINE and resources.nodes > 1:
        raise ConfigError(
            f"{file}: resources.{name}.nodes = {resources.nodes}, but launcher '{launcher}' knows one machine alone: "
            f"set 1, or launchers.{name} to slurm or kubernetes"
        )
    if kind is Processes.SINGLE and resources.ranks > 1:
        key = "gpus" if resources.gpus else "nproc_per_node"
        raise ConfigError(
            f"{file}: resources.{name}.{key} = {resources.ranks}, but stage '{node.stage}'{engine} is one process:"
            " set 1"
        )
    device = getattr(config, "device", "auto")
    if device == "cuda" and not resources.gpus:
        raise ConfigError(
            f"{file}: {name}.device = 'cuda', but resources.{name}.gpus = 0: set how many GPUs it gets, or another"
            " device"
        )
    if device == "cpu" and resources.gpus:
        raise ConfigError(
            f"{file}: {name}.device = 'cpu', but resources.{name}.gpus = {resources.gpus}: set 0, or another device"
        )
    try:
        node.check_resources(name, config, resources)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error


def check_arrays(node: Node, config: StageConfig, launcher: str, origin: Mapping[str, str]) -> None:
    """A stage that asks for arrays of jobs needs the launcher that submits them."""
    by = getattr(config, "workers", None)
    if by not in ("slurm", "kubernetes") or launcher == by:
        return
    file = origin_of(origin, f"node.{node.name}.workers", f"stage.{node.stage}.workers")
    raise ConfigError(
        f"{file}: {node.name}.workers = '{by}' needs the {by} launcher, but '{launcher}' runs it: set"
        f" launchers.{node.name} to {by}, or workers to a number"
    )


def recorded_secrets(value: Any, place: str = "") -> Iterator[str]:
    """A line for each address in a profile's tables that holds a password, a signature or a token: what a
    configuration says is recorded for good.
    """
    if isinstance(value, Mapping):
        for key, item in cast("Mapping[str, Any]", value).items():
            yield from recorded_secrets(item, f"{place}.{key}" if place else key)
    elif isinstance(value, list | tuple):
        for number, item in enumerate(cast("list[Any]", value)):
            yield from recorded_secrets(item, f"{place}.{number}")
    elif isinstance(value, str) and value.startswith(("https://", "http://", "hf://")):
        try:
            secret = shown(value) != urllib.parse.urlsplit(value)._replace(fragment="").geturl()
        except ValueError:  # no address after all: whoever reads it says so
            return
        if secret:
            yield (
                f"{place} = {shown(value)} holds a password, a signature or a token, which will be recorded with the"
                " configuration, in the manifest and in Prefect: give keys in variables (infra/README.md, Credentials)"
            )
