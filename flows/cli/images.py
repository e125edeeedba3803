"""`moxin images`: build, list and verify the images of the stages."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from flows.cli.common import out
from flows.terminal_text import counted
from stages.core.errors import ConfigError, InfraError

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Images of the stages, for Docker, Slurm and Kubernetes."
)
StagesArgument = Annotated[list[str] | None, typer.Argument(help="stages; all of the pipeline when none is named")]


@app.command()
def build(
    stages: StagesArgument = None,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="also those that are there already")] = False,
    control: Annotated[bool, typer.Option("--control", help="the control plane's worker, and no stage")] = False,
) -> None:
    """Build the images that the code asks for and Docker lacks."""
    from flows import generated_files, images
    from flows.settings import home

    if control:
        out.print(f"built {images.build_control(images.docker_client(), home() / 'wheels', out.print)}")
        return
    built = images.build(
        images.docker_client(),
        images.select(generated_files.stages(), stages or ()),
        home() / "wheels",
        out.print,
        rebuild,
    )
    out.print(f"built {counted(len(built), 'image')}" if built else "every image is there already")


@app.command("list")
def list_(stages: StagesArgument = None) -> None:
    """List the images that the code asks for: there or not, size."""
    from flows import generated_files, image_checks, images
    from flows.console import rows_table

    rows = image_checks.image_rows(images.docker_client(), images.select(generated_files.stages(), stages or ()))
    out.print(rows_table([vars(row) for row in rows]))


@app.command()
def verify(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="stages, or engines: open-instruct, verl, areal, colossalai; all stages when none is named"
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="what was found, as JSON")] = False,
) -> None:
    """Start every image and compare it with the code here.

    Labels, files, imports, user. Of an engine: import its programs, in its image or here.
    """
    from flows import generated_files, image_checks, images
    from stages.core.selfcheck import ENGINES

    engines = [name for name in names or () if name in ENGINES]
    stages = [name for name in names or () if name not in ENGINES]
    problems: list[str] = []
    rows: list[dict[str, object]] = []
    if stages or not engines:
        chosen = images.select(generated_files.stages(), stages)
        problems = image_checks.verify(images.docker_client(), chosen)
        rows = [
            {"stage": image.stage, "image": image.reference, "problems": [p for p in problems if image.reference in p]}
            for image in chosen
        ]
        if not problems and not as_json:
            out.print(f"{len(chosen)} images hold exactly the code that lies here")
    for check in image_checks.verify_engines(_client_or_none(), engines, generated_files.stages()):
        rows.append({"engine": check.engine, "where": check.where, "problems": list(check.problems)})
        if check.problems:
            problems.append(check.line())
        elif not as_json:
            out.print(check.line(), markup=False, soft_wrap=True)
    if as_json:
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
        raise typer.Exit(1 if problems else 0)
    if problems:
        raise ConfigError("\n".join(problems))


def _client_or_none() -> Any:
    """The Docker daemon's client; None where none answers."""
    from flows import images

    try:
        return images.docker_client()
    except InfraError:
        return None


@app.command()
def labels() -> None:
    """Print the tags and labels of the moment, for buildx bake.

    `docker buildx bake -f docker-bake.json -f <this>`
    """
    from flows import bake, environments, generated_files

    images = [environments.stage_image(stage, env) for stage, env in generated_files.stages().items()]
    sys.stdout.write(bake.override_text(bake.content_names(images)))
