"""Launchers: each turns a StageRequest into a running container or process, and streams its events back."""

from __future__ import annotations

from collections.abc import Callable

from flows.launch.base import Launcher
from flows.settings import Settings
from stages.core.errors import ConfigError


def _process(settings: Settings) -> Launcher:
    from flows.launch.process import ProcessLauncher

    return ProcessLauncher(settings)


def _docker(settings: Settings) -> Launcher:
    from flows.launch.docker import DockerLauncher

    return DockerLauncher(settings)


def _slurm(settings: Settings) -> Launcher:
    from flows.launch.slurm import SlurmLauncher

    return SlurmLauncher(settings)


def _kubernetes(settings: Settings) -> Launcher:
    from flows.launch.kubernetes import KubernetesLauncher

    return KubernetesLauncher(settings)


_LAUNCHERS: dict[str, Callable[[Settings], Launcher]] = {
    "process": _process,
    "docker": _docker,
    "slurm": _slurm,
    "kubernetes": _kubernetes,
}


def launcher(name: str, settings: Settings) -> Launcher:
    """The launcher of that name. Raises ConfigError for an unknown one."""
    if name not in _LAUNCHERS:
        raise ConfigError(f"launcher '{name}' is not known; there are: {', '.join(_LAUNCHERS)}")
    return _LAUNCHERS[name](settings)
