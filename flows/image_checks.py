"""List and verify images: what the daemon has against what the code here asks for."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from flows import environments
from flows.environments import Image
from flows.images import exists
from stages.core import selfcheck
from stages.core.interpreters import variable


@dataclass(frozen=True)
class ImageRow:
    """An image as `moxin images list` shows it."""

    image: str
    state: str
    mib: int
    own_kib: int
    layers: int


def image_rows(client: Any, images: Iterable[Image]) -> list[ImageRow]:
    """Every image that the pipeline asks for: whether it is there, its size, and what it adds to its environment."""
    rows: list[ImageRow] = []
    for image in images:
        if not exists(client, image.reference):
            rows.append(ImageRow(image.reference, "missing", 0, 0, 0))
            continue
        attributes = client.images.get(image.reference).attrs
        below = (
            client.images.get(image.environment).attrs["Size"]
            if exists(client, image.environment)
            else attributes["Size"]
        )
        problems = mismatches(attributes["Config"]["Labels"] or {}, image)
        size, layers = int(attributes["Size"]), len(attributes["RootFS"]["Layers"])
        rows.append(
            ImageRow(image.reference, "; ".join(problems) or "ok", size >> 20, (size - int(below)) >> 10, layers)
        )
    return rows


def mismatches(labels: dict[str, str], image: Image) -> list[str]:
    """Where an image's labels differ from what the code here asks for."""
    return [
        f"{name} is {labels.get(name, 'absent')[:16]}, not {value[:16]}"
        for name, value in image.labels.items()
        if labels.get(name) != value
    ]


def verify(client: Any, images: Iterable[Image]) -> list[str]:
    """Start every image once, without network and with a read-only root, and compare it with what lies here; the
    problems.
    """
    problems: list[str] = []
    for image in images:
        if not exists(client, image.reference):
            problems.append(f"{image.reference} is not there: run 'moxin images build'")
            continue
        attributes = client.images.get(image.reference).attrs
        problems += [f"{image.reference}: {line}" for line in mismatches(attributes["Config"]["Labels"] or {}, image)]
        if (user := attributes["Config"]["User"]).split(":")[0] in ("", "0", "root"):
            problems.append(f"{image.reference} runs as '{user or 'root'}'")
        problems += [f"{image.reference}: {line}" for line in _content_problems(client, image)]
    return problems


@dataclass(frozen=True)
class EngineCheck:
    """An engine as `moxin images verify` found it in one place."""

    engine: str
    where: str
    problems: tuple[str, ...]

    def line(self) -> str:
        """For people."""
        return f"{self.engine} ({self.where}): {'; '.join(self.problems) or 'ok'}"


def verify_engines(client: Any, names: Iterable[str], stages: dict[str, str]) -> list[EngineCheck]:
    """Import each engine's programs where it is: by the Python that a variable of this machine names, and in the images
    that have one.

    client: None where no Docker daemon runs. Names that nothing has are told so.
    """
    checks: list[EngineCheck] = []
    for name in names:
        checks_of_engine: list[EngineCheck] = []
        if os.environ.get(variable(name)):
            checks_of_engine.append(EngineCheck(name, "this machine", tuple(selfcheck.lacking(name))))
        for stage in selfcheck.ENGINES[name].stages if client else ():
            image = environments.stage_image(stage, stages[stage])
            if exists(client, image.reference) and _has_engine(client, image.reference, name):
                checks_of_engine.append(
                    EngineCheck(name, image.reference, tuple(_missing_in_image(client, image.reference, name)))
                )
        checks += checks_of_engine or [
            EngineCheck(
                name,
                "nowhere",
                (f"{variable(name)} is not set, and no image here has it (containers/{name}/README.md)",),
            )
        ]
    return checks


def _has_engine(client: Any, reference: str, name: str) -> bool:
    given: list[str] = client.images.get(reference).attrs["Config"]["Env"] or []
    return any(row.startswith(f"{variable(name)}=") for row in given)


def _missing_in_image(client: Any, reference: str, name: str) -> list[str]:
    from docker.errors import ContainerError

    try:
        output = client.containers.run(
            reference,
            ["-m", "stages.core.selfcheck", name],
            entrypoint=["python"],
            network_mode="none",
            read_only=True,
            remove=True,
            tmpfs={"/tmp": "", "/scratch": "uid=65532"},
            cap_drop=["ALL"],
            security_opt=["no-new-privileges"],
            stdout=True,
        )
    except ContainerError as error:
        output = error.container.logs(stdout=True, stderr=False) if error.container else b""
        return output.decode(errors="replace").strip().splitlines() or [
            f"its check ended with status {error.exit_status}"
        ]
    return [line for line in output.decode(errors="replace").strip().splitlines() if line != "ok"]


_PROBE = """
import hashlib, importlib, json, pathlib, shutil, sys
root = pathlib.Path("/app")
files = sorted(p for p in root.rglob("*") if p.is_file())
rows = [[p.relative_to(root).as_posix(), hashlib.sha256(p.read_bytes()).hexdigest()] for p in files]
importlib.import_module(f"stages.{sys.argv[1]}.run")
print(json.dumps({"files": rows, "tools": [t for t in ("cc", "gcc", "pip", "make") if shutil.which(t)]}))
"""


def _content_problems(client: Any, image: Image) -> list[str]:
    """What is wrong inside an image: other files than here, imports that fail, tools that do not belong there."""
    from docker.errors import ContainerError

    try:
        output = client.containers.run(
            image.reference,
            ["-c", _PROBE, image.stage],
            entrypoint=["python"],
            network_mode="none",
            read_only=True,
            remove=True,
            tmpfs={"/tmp": "", "/scratch": "uid=65532"},
            cap_drop=["ALL"],
            security_opt=["no-new-privileges"],
        )
    except ContainerError as error:
        lines = str(error).strip().splitlines()
        return [f"its stage cannot be imported: {lines[-1]}"]
    content = json.loads(output)
    digest = environments.sha256(environments.canonical_json(content["files"]))
    problems = [] if digest == environments.content_digest(image.stage) else ["its files are not those that lie here"]
    return problems + [f"it has {tool}" for tool in content["tools"]]
