"""Profiles: the values of a run. `infra/profiles/<name>.toml`, then `--set node.field=value` on top.

A profile holds values only, never wiring. Tables: `[stage.<stage>]` for all nodes of a stage, `[node.<node>]` for one,
`[resources.<node>]` for what it may use, `[launchers]` for who runs it, `[adopt]` for results to take.
`extends = "other"` starts from another profile.
"""

from __future__ import annotations

import copy
import difflib
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flows.data_files import DATA
from flows.override_values import value_of
from flows.profile_checks import check_arrays, check_processes, origin_of, recorded_secrets
from stages.core.config import StageConfig
from stages.core.errors import ConfigError
from stages.core.graph import Node, Pipeline
from stages.core.renamed import current_names
from stages.core.resources import Resources

FOLDER = DATA / "infra" / "profiles"


LauncherName = Literal["process", "docker", "slurm", "kubernetes"]
"""Those of flows/launch."""


class ProfileFile(BaseModel):
    """The top level of a profile's TOML file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    description: str = ""
    extends: str | None = None
    card: str = Field(
        default="", description="the GPU to plan for, by its name in infra/gpu_prices.toml; unset: its [gpu]"
    )
    launcher: LauncherName = Field(default="process", description="who runs the stages")
    parallel: int = Field(default=2, ge=1, description="nodes that run at the same time")
    retries: int = Field(
        default=2,
        ge=0,
        description=(
            "attempts after an out-of-memory or a preemption; one that saved a new checkpoint uses up none; 0: never"
        ),
    )
    patience: float = Field(
        default=900.0,
        ge=0,
        description="seconds of growing pauses in which a store or a launcher that is away may come back",
    )
    on_drift: Literal["rerun", "warn", "fail"] = Field(
        default="warn",
        description="a result made by other code than the present: run it again, use it and say so, or stop",
    )
    stage: dict[str, dict[str, Any]] = Field(default_factory=dict)
    node: dict[str, dict[str, Any]] = Field(default_factory=dict)
    resources: dict[str, dict[str, Any]] = Field(default_factory=dict)
    adopt: dict[str, str] = Field(
        default_factory=dict,
        description=(
            "{node: tag or key of a result that stands for what it would make}: 'moxin adopt' makes one of others'"
            " weights or data"
        ),
    )
    launchers: dict[str, LauncherName] = Field(
        default_factory=dict, description="{node or stage: who runs it, instead of `launcher`}"
    )


@dataclass(frozen=True)
class Profile:
    """A resolved profile: settings, and every node's validated configuration and resources."""

    name: str
    settings: ProfileFile
    configs: Mapping[str, StageConfig]
    resources: Mapping[str, Resources]
    launchers: Mapping[str, str] = field(default_factory=dict[str, str])
    overrides: tuple[str, ...] = field(default=())
    warnings: tuple[str, ...] = field(default=())
    """Settings that were given under a former name, a line for each."""
    experiment: str = ""
    """The experiment that these settings are; "": none."""

    def wire(self, pipeline: Pipeline) -> Pipeline:
        """The pipeline as these values wire it (`Pipeline.under`)."""
        return pipeline.under(self.configs, self.settings.adopt)

    @property
    def names(self) -> str:
        """Whose names for results a run goes by: the profile's, or the experiment's own (`Ledger.node`)."""
        return names_in(self.name, self.experiment)


def names_in(profile: str, experiment: str = "") -> str:
    """What the names for results of a profile, or of an experiment of it, are kept under."""
    return f"{profile}@{experiment}" if experiment else profile


def names() -> list[str]:
    """The profiles that exist."""
    return sorted(p.stem for p in FOLDER.glob("*.toml"))


def load(name: str, pipeline: Pipeline, overrides: Iterable[str] = (), folder: Path = FOLDER) -> Profile:
    """Read, merge and validate a profile. Raises ConfigError naming file, key, value and the nearest valid key."""
    overrides = tuple(overrides)
    origin: dict[str, str] = {}
    warnings: list[str] = []
    tables = _read(name, folder, pipeline, origin, warnings)
    for override in overrides:
        _apply_override(tables, override, pipeline, origin, warnings)
    settings = _settings(tables, origin)
    stages = {n.stage for n in pipeline}
    _known(settings.stage, stages, "stage", origin)
    _known(settings.node, set(pipeline.nodes), "node", origin)
    _known(settings.resources, set(pipeline.nodes) | stages, "resources", origin)
    _known(settings.adopt, set(pipeline.nodes), "adopt", origin)
    _known(settings.launchers, set(pipeline.nodes) | stages, "launchers", origin)
    configs = {n.name: _config(n, settings, origin) for n in pipeline}
    resources = {n.name: _resources(n, configs[n.name], settings, origin) for n in pipeline}
    launchers = {
        n.name: settings.launchers.get(n.name, settings.launchers.get(n.stage, settings.launcher)) for n in pipeline
    }
    for node in pipeline:
        check_processes(node, configs[node.name], resources[node.name], launchers[node.name], origin)
        check_arrays(node, configs[node.name], launchers[node.name], origin)
    warnings += recorded_secrets(tables)
    return Profile(name, settings, configs, resources, launchers, overrides, tuple(dict.fromkeys(warnings)))


def _read(
    name: str,
    folder: Path,
    pipeline: Pipeline,
    origin: dict[str, str],
    warnings: list[str],
    chain: tuple[str, ...] = (),
) -> dict[str, Any]:
    path = folder / f"{name}.toml"
    if name in chain:
        raise ConfigError(f"{path.name}: profiles extend each other in a circle: {' -> '.join((*chain, name))}")
    if Path(name).name != name or not path.is_file():  # a name, under which results are found: no path
        known = sorted(p.stem for p in folder.glob("*.toml"))
        close = difflib.get_close_matches(name, known, n=1)
        raise ConfigError(
            f"no profile '{name}'" + (f"; did you mean '{close[0]}'?" if close else f"; there are: {', '.join(known)}")
        )
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path.name} is not valid TOML: {error}") from error
    base: dict[str, Any] = {}
    if isinstance(tables.get("extends"), str):
        base = _read(tables["extends"], folder, pipeline, origin, warnings, (*chain, name))
    tables = _with_current_names(tables, pipeline, path.name, warnings)
    _mark(tables, path.name, origin)
    return merge(base, tables)


def _mark(value: Any, file: str, origin: dict[str, str], path: str = "") -> None:
    """Remember which file each key came from, for messages."""
    origin[path] = file
    if isinstance(value, dict):
        for key, inner in cast("dict[str, Any]", value).items():
            _mark(inner, file, origin, f"{path}.{key}" if path else key)


def _with_current_names(tables: dict[str, Any], pipeline: Pipeline, source: str, warnings: list[str]) -> dict[str, Any]:
    """A profile's tables with fields that are given under a former name under their present one; adds to `warnings`.

    source: the file, or `--set`. Before tables are merged: a former name in one and the present one in another are one
    setting.
    """
    tables = _renamed(ProfileFile, tables, f"{source}: ", warnings)
    stages: dict[str, type[BaseModel]] = {node.stage: node.config_type for node in pipeline}
    nodes: dict[str, type[BaseModel]] = {node.name: node.config_type for node in pipeline}
    resources: dict[str, type[BaseModel]] = dict.fromkeys([*stages, *nodes], Resources)
    for kind, models in (("stage", stages), ("node", nodes), ("resources", resources)):
        if isinstance(tables.get(kind), dict):  # validation refuses what is no table
            tables[kind] = {
                name: _renamed(models[name], cast("dict[str, Any]", values), f"{source}: {kind}.{name}.", warnings)
                if name in models and isinstance(values, dict)
                else values
                for name, values in tables[kind].items()
            }
    return tables


def _renamed(model: type[BaseModel], values: Mapping[str, Any], place: str, warnings: list[str]) -> dict[str, Any]:
    try:
        values, old = current_names(model, values)
    except ConfigError as error:
        raise ConfigError(f"{place}{error}") from error
    warnings += [name.warning(place) for name in old]
    return values


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` on top of `base`, table by table."""
    out = dict(base)
    for key, new in over.items():
        both = isinstance(old := out.get(key), Mapping) and isinstance(new, Mapping)
        out[key] = merge(cast("Mapping[str, Any]", old), cast("Mapping[str, Any]", new)) if both else new
    return out


def _apply_override(
    tables: dict[str, Any], override: str, pipeline: Pipeline, origin: dict[str, str], warnings: list[str]
) -> None:
    """Apply one `node.field=value` (or `stage.field=value`, or a setting of the profile such as `parallel=1`)."""
    path, equals, text = override.partition("=")
    parts = path.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"--set {override!r}: write node.field=value, for example pretrain_1.learning_rate=1e-3")
    if parts == ["extends"]:
        raise ConfigError(
            f"--set {override!r}: what a profile extends is read before settings are: write it in a file of"
            " infra/profiles"
        )
    value = text.strip() if parts[0] == "adopt" else value_of(text)  # a key may read like a number
    stages = {n.stage for n in pipeline}
    if len(parts) == 1 and (parts[0] in pipeline or parts[0] in stages):
        raise ConfigError(f"--set {override!r}: {parts[0]} has many fields: write {parts[0]}.field=value")
    if len(parts) > 1:
        if parts[0] in pipeline:
            parts.insert(0, "node")
        elif parts[0] in stages:
            parts.insert(0, "stage")
        elif parts[0] not in ("resources", "launchers", "adopt"):
            close = difflib.get_close_matches(parts[0], [*pipeline.nodes, *stages], n=1)
            raise ConfigError(
                f"--set {override!r}: no node '{parts[0]}'" + (f"; did you mean '{close[0]}'?" if close else "")
            )
    current = _override_with_current_names(parts, value, pipeline, f"--set {override!r}", warnings)
    if current is None:
        return
    parts, value = current
    if (
        parts[0] == "stage" and len(parts) > 1
    ):  # a node's own value would win over a stage's: set it for each of its nodes
        paths = [["node", node.name, *parts[2:]] for node in pipeline if node.stage == parts[1]]
    else:
        paths = [parts]
    for path in paths:
        _set(tables, path, copy.deepcopy(value), override, origin)


def _override_with_current_names(
    parts: list[str], value: Any, pipeline: Pipeline, source: str, warnings: list[str]
) -> tuple[list[str], Any] | None:
    """An override's path and value with present names of fields; None: a setting that means nothing any more. Adds to
    `warnings`.
    """
    table: Any = value
    for part in reversed(parts):
        table = {part: table}
    table = _with_current_names(table, pipeline, source, warnings)
    current: list[str] = []
    # a setting may have moved into another table, deeper or less deep than before; a table is set as a whole
    while isinstance(table, dict) and (len(current) < len(parts) or not isinstance(value, dict)):
        if not table:
            return None
        part, table = next(iter(cast("dict[str, Any]", table).items()))
        current.append(part)
    return current, cast("Any", table)


def _set(tables: dict[str, Any], parts: list[str], value: Any, override: str, origin: dict[str, str]) -> None:
    """Set the value at a path, through tables that may not be there yet."""
    table = tables
    for depth, part in enumerate(parts[:-1], 1):
        if part not in table:
            table[part] = {}
            origin[".".join(parts[:depth])] = "--set"
        if not isinstance(table[part], dict):
            raise ConfigError(f"--set {override!r}: '{part}' is a value, not a table")
        table = table[part]
    table[parts[-1]] = value
    origin[".".join(parts)] = "--set"


def _location(error: ValidationError) -> str:
    """The path of the first mistake."""
    return ".".join(str(part) for part in error.errors()[0]["loc"])


def _settings(tables: dict[str, Any], origin: Mapping[str, str]) -> ProfileFile:
    try:
        return ProfileFile.model_validate(tables)
    except ValidationError as error:
        raise ConfigError(f"{origin_of(origin, _location(error))}: {_explain(error, ProfileFile)}") from error


def _known(tables: Mapping[str, Any], valid: set[str], kind: str, origin: Mapping[str, str]) -> None:
    for name in tables:
        if name not in valid:
            close = difflib.get_close_matches(name, sorted(valid), n=1)
            file = origin_of(origin, f"{kind}.{name}")
            raise ConfigError(
                f"{file}: [{kind}.{name}] names no {kind}" + (f"; did you mean '{close[0]}'?" if close else "")
            )


def _config(node: Node, settings: ProfileFile, origin: Mapping[str, str]) -> StageConfig:
    values = merge(settings.stage.get(node.stage, {}), settings.node.get(node.name, {}))
    try:
        return node.config_type.model_validate(values)
    except ValidationError as error:
        file = origin_of(origin, f"node.{node.name}.{_location(error)}", f"stage.{node.stage}.{_location(error)}")
        raise ConfigError(f"{file}: {_explain(error, node.config_type, node.name)}") from error
    except ConfigError as error:  # of what a setting names: a suite file
        file = origin_of(origin, f"node.{node.name}", f"stage.{node.stage}")
        raise ConfigError(f"{file}: {node.name}: {error}") from error


def _resources(node: Node, config: StageConfig, settings: ProfileFile, origin: Mapping[str, str]) -> Resources:
    values = merge(settings.resources.get(node.stage, {}), settings.resources.get(node.name, {}))
    try:
        return Resources.model_validate(merge(node.resources(config).model_dump(), values))
    except ValidationError as error:
        file = origin_of(origin, *(f"resources.{name}.{_location(error)}" for name in (node.name, node.stage)))
        raise ConfigError(f"{file}: {_explain(error, Resources, 'resources', node.name)}") from error


def _explain(error: ValidationError, model: type[BaseModel], *table: str) -> str:
    """The first mistake of a validation as `key = value: what is wrong`; of several keys that do not go together, the
    table's name.
    """
    first = error.errors()[0]
    key = ".".join(filter(None, (*table, _location(error)))) or "the profile"
    if first["type"] == "missing":
        return f"{key}: required, and not set"
    if first["type"] == "extra_forbidden":
        valid = _table(model, first["loc"][:-1]).model_fields
        close = difflib.get_close_matches(str(first["loc"][-1]), list(valid), n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"there are: {', '.join(valid)}"
        return f"{key}: no such setting; {hint}"
    several = first["type"] == "value_error" and isinstance(
        first.get("input"), Mapping
    )  # keys that do not go together: not the whole table
    value = "" if several else f" = {first.get('input')!r}"
    return f"{key}{value}: {first['msg'].removeprefix('Value error, ')}"


def _table(model: type[BaseModel], location: Iterable[int | str]) -> type[BaseModel]:
    """The model of an inner table, through nested tables and lists of tables."""
    for part in location:
        if str(part) in model.model_fields:
            model = next(_models(model.model_fields[str(part)].annotation), model)
    return model


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models that an annotation such as `tuple[M, ...]` or `M | None` speaks of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)
