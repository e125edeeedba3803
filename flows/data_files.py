"""Where the files are that the control plane reads beside its code: profiles, prices, templates, locks.

In a checkout: the repository's own folders. In an installed package: copies in flows/_data, which setup.py puts there.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from stages.core.errors import ConfigError
from stages.core.files import ROOT

IN_CHECKOUT = (ROOT / "pyproject.toml").is_file() and (ROOT / "infra" / "profiles").is_dir()
ModelType = TypeVar("ModelType", bound=BaseModel)
DATA = ROOT if IN_CHECKOUT else ROOT / "flows" / "_data"
"""The folder that holds `infra` and `containers`."""


def require_checkout(command: str) -> None:
    """Raises ConfigError outside a checkout: what builds images or rewrites files needs the whole repository."""
    if not IN_CHECKOUT:
        raise ConfigError(f"'{command}' needs a checkout of Moxin: run it there, this is an installed package")


def load_toml(model: type[ModelType], path: Path) -> ModelType:
    """A TOML file as a typed value. Raises ConfigError naming file, key and value; OSError and UnicodeDecodeError are
    the caller's.
    """
    try:
        return model.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path.name} is not valid TOML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        key, value = ".".join(map(str, first["loc"])), first.get("input")
        given = "" if first["type"] == "missing" else f" = {value!r}"
        raise ConfigError(f"{path.name}: {key}{given}: {first['msg'].removeprefix('Value error, ')}") from error
