"""Launchers: each turns a StageRequest into a running container or process, and streams its events back."""

from __future__ import annotations

from collections.abc import Callable

from flows.launch.base import Launcher
from flows.settings import Settings
from stages.core.contracts import ConfigError


def _process(settings: Settings) -> Launcher:
    from flows.launch.process import ProcessLauncher

    return ProcessLauncher(settings)


_LAUNCHERS: dict[str, Callable[[Settings], Launcher]] = {"process": _process}


def launcher(name: str, settings: Settings) -> Launcher:
    """The launcher of that name. Raises ConfigError for an unknown one."""
    if name not in _LAUNCHERS:
        raise ConfigError(f"launcher '{name}' is not known; there are: {', '.join(_LAUNCHERS)}")
    return _LAUNCHERS[name](settings)
