"""Deployments, derived from the pipeline: moxin/full, moxin/<node> for each node (same flow, other `select`), and
moxin/rehearse (flows/rehearsal/run.py), moxin/sweep (flows/sweep.py).
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flows import node_form, profiles
from flows.experiments.naming import check_name, user
from flows.local_services.prefect import POOL, call_api
from flows.settings import Settings
from stages.core.errors import ConfigError
from stages.core.files import ROOT
from stages.core.keys import sha256
from stages.pipeline import PIPELINE

ENTRYPOINT = "flows/flow.py:moxin"
REHEARSAL = "flows/rehearsal/run.py:rehearse"
SWEEP = "flows/sweep.py:sweep"
GROUPS = {"data": "data", "train": "pretrain", "post": "post", "vlm": "vision", "eval": "evaluate"}
"""What deployments are grouped by in Prefect's pages: a tag for each environment of stages."""
PAGE = 200
OF = "installation:"
"""Tag of a deployment: whose it is."""


def deployments() -> list[dict[str, Any]]:
    """Every deployment as prefect.yaml states it."""
    whole = "Run the whole pipeline. Finished stages are answered from the ledger."
    alone = "Only this node, from the artifacts that are there."
    sweep = "Run with several settings, each an experiment; what they share is made once."
    rehearsal = "Run a profile's DAG small, where it is meant to run, and tell what the real one will meet."
    return [
        _deployment("full", whole, ENTRYPOINT, "full"),
        *(_deployment(n.name, f"{_summary(n)} {alone}", ENTRYPOINT, n.name, GROUPS[n.env]) for n in PIPELINE),
        _deployment("rehearse", rehearsal, REHEARSAL, "full"),
        _deployment("sweep", sweep, SWEEP, "full"),
    ]


def _deployment(name: str, description: str, entrypoint: str, select: str, group: str = "") -> dict[str, Any]:
    return {
        "name": name,
        "description": description,
        "entrypoint": entrypoint,
        "tags": ["moxin", *([group] if group else [])],
        "parameters": {"select": select},
        "enforce_parameter_schema": True,
        "work_pool": {"name": POOL},
    }


def _summary(node: Any) -> str:
    return (type(node).__doc__ or "").strip().splitlines()[0]


def prefect_yaml() -> str:
    """The text of prefect.yaml, for `prefect deploy --all` on a server of one's own."""
    import yaml

    head = "# Derived from stages/pipeline.py by `moxin check --write`; do not edit.\n"
    body = {
        "name": "moxin",
        "pull": [{"prefect.deployments.steps.set_working_directory": {"directory": "."}}],
        "deployments": deployments(),
    }
    return head + yaml.safe_dump(body, sort_keys=False, width=110)


def installation(known: Sequence[Mapping[str, Any]] = ()) -> str:
    """The name of this checkout among those that share a server: MOXIN_INSTALLATION, else its folder's and who it
    belongs to, and digits of its place where another checkout has that name. known: what checkouts have registered.
    Raises ConfigError for a name that is none, and for a given one that another checkout has.
    """
    given = os.environ.get("MOXIN_INSTALLATION")
    name = given or re.sub(r"[^A-Za-z0-9._-]+", "-", f"{user()}-{ROOT.name}").strip("-.")
    check_name("MOXIN_INSTALLATION =", name)
    others = {str(row["path"]) for row in known if f"{OF}{name}" in row["tags"]} - {str(ROOT)}
    held = [path for path in sorted(others) if Path(path).is_dir()]
    if not held:
        return name
    if given:
        raise ConfigError(f"another checkout, {held[0]}, is the installation {name}: set MOXIN_INSTALLATION")
    return f"{name[:56]}-{sha256(str(ROOT).encode())[:6]}"


def register(settings: Settings, say: Callable[[str], object] = lambda text: None) -> int:
    """Create or update this installation's deployments on the Prefect server, and remove those that it has no longer;
    returns how many there are. The first checkout of a server has moxin/full and the others; one that comes later has
    moxin/full-<installation>, until the first one's folder is gone. Raises InfraError for a server that refuses.
    """
    from prefect.utilities.callables import parameter_schema

    from flows.flow import moxin
    from flows.rehearsal.run import rehearse
    from flows.sweep import sweep

    flows = {ENTRYPOINT: moxin, REHEARSAL: rehearse, SWEEP: sweep}
    schemas = {entry: parameter_schema(flow).model_dump_for_openapi() for entry, flow in flows.items()}
    values = _profiles(say)
    known: list[dict[str, Any]] = _registered(settings)
    name = installation(known)
    suffix = _suffix(known, name, say)
    flow_id = call_api(settings, "POST", "/flows/", {"name": moxin.name})["id"]
    fixed = {
        "flow_id": flow_id,
        "path": str(ROOT),
        "pull_steps": [{"prefect.deployments.steps.set_working_directory": {"directory": str(ROOT)}}],
        "work_pool_name": POOL,
    }
    rows = deployments()
    schedules = {str(row["name"]): _schedules(row) for row in known if row["path"] == str(ROOT)}
    for row in rows:
        kept = {key: value for key, value in row.items() if key != "work_pool"}
        kept["name"] = row["name"] + suffix
        kept["schedules"] = schedules.get(kept["name"], [])
        kept["tags"] = [*row["tags"], f"{OF}{name}"]
        kept["parameter_openapi_schema"] = _form(row, schemas.get(row["entrypoint"], schemas[ENTRYPOINT]), values)
        call_api(settings, "POST", "/deployments/", kept | fixed)
    ours = {row["name"] + suffix for row in rows}
    for old in known:  # of nodes that are gone, or under a former name of this checkout
        if old["path"] == str(ROOT) and old["name"] not in ours and "moxin" in old["tags"]:
            call_api(settings, "DELETE", f"/deployments/{old['id']}")
    return len(rows)


def _schedules(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What people have scheduled of a deployment: a server that is told of one anew forgets what it is not told of."""
    kept = ("schedule", "active", "parameters", "slug")
    return [{key: one.get(key) for key in kept} for one in row.get("schedules") or ()]


def _profiles(say: Callable[[str], object]) -> list[profiles.Profile]:
    """The profiles whose values forms show. One that cannot be read keeps nobody from his work with the others."""
    values: list[profiles.Profile] = []
    for name in profiles.names():
        try:
            values.append(profiles.load(name, PIPELINE))
        except ConfigError as error:
            say(f"the forms do not show the values of profile {name}: {error}")
    return values


def _form(row: Mapping[str, Any], schema: Mapping[str, Any], values: Sequence[profiles.Profile]) -> dict[str, Any]:
    """The form of a deployment: of a node's with its own fields, of another one without any."""
    form = copy.deepcopy(dict(schema))
    if (select := row["parameters"]["select"]) not in PIPELINE:
        form["properties"].pop("fields", None)
        return form
    typed = node_form.schema(PIPELINE.nodes[select], values)
    form["definitions"] = {**form.get("definitions", {}), **typed["definitions"]}
    form["properties"]["fields"] = {
        "title": "fields", "description": form["properties"]["fields"]["description"], "position": len(PIPELINE),
        "type": "object", "properties": typed["properties"], "additionalProperties": False,
    }  # fmt: skip
    return form


def _registered(settings: Settings) -> list[dict[str, Any]]:
    """The deployments that checkouts have registered on the server."""
    rows: list[dict[str, Any]] = []
    while True:
        query = {"deployments": {"tags": {"all_": ["moxin"]}}, "limit": PAGE, "offset": len(rows)}
        page: list[dict[str, Any]] = call_api(settings, "POST", "/deployments/filter", query) or []
        rows += page
        if len(page) < PAGE:
            return rows


def _suffix(known: Sequence[Mapping[str, Any]], name: str, say: Callable[[str], object]) -> str:
    """What follows the names of this checkout's deployments: nothing where the plain names are its own, or nobody's."""
    plain = next((row for row in known if row["name"] == "full"), None)
    if plain is None or plain["path"] == str(ROOT):
        return ""
    if not Path(str(plain["path"])).is_dir():
        say(f"the deployments of {plain['path']}, which is gone, are this checkout's now")
        return ""
    suffix = f"-{name}"
    owner = next((tag.removeprefix(OF) for tag in plain["tags"] if tag.startswith(OF)), "another checkout")
    say(
        f"moxin/full belongs to {owner} ({plain['path']}): this checkout's deployments are moxin/full{suffix} and so on"
    )
    return suffix
