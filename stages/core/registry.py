"""Stages by name: the class that `stages/<name>/spec.py` declares, and its configuration from plain values."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from stages.core.config import StageConfig
from stages.core.errors import ConfigError
from stages.core.stage import Stage


def find_stage(name: str) -> type[Stage[StageConfig]]:
    """The stage class that `stages/<name>/spec.py` declares."""
    try:
        module = importlib.import_module(f"stages.{name}.spec")
    except ModuleNotFoundError as error:
        raise ConfigError(f"this image has no stage '{name}' ({error})") from error
    declared: list[type[Any]] = [
        c
        for _, c in inspect.getmembers(module, inspect.isclass)
        if issubclass(c, Stage) and c.__module__ == module.__name__
    ]
    if len(declared) != 1:
        raise ConfigError(f"stages/{name}/spec.py must declare exactly one stage, found {len(declared)}")
    return declared[0]


def validated_config(stage: type[Stage[StageConfig]], node: str, values: Mapping[str, Any]) -> StageConfig:
    """Validate a configuration; a mistake becomes one line that names node, key and value."""
    try:
        return stage.config_type.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "config"
        if first["type"] == "extra_forbidden":
            raise ConfigError(f"{node}.{key}: stage '{stage.stage}' has no such setting") from error
        raise ConfigError(
            f"{node}.{key} = {first.get('input')!r}: {first['msg'].removeprefix('Value error, ')}"
        ) from error
