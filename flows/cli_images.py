"""`moxin images`: build, list and verify the images of the stages."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.console import Console

from flows.settings import home
from stages.core.contracts import ConfigError

app = typer.Typer(no_args_is_help=True, help="The images that stages run in on Docker, Slurm and Kubernetes.")
out = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
StagesArgument = Annotated[list[str] | None, typer.Argument(help="stages; all of the pipeline when none is named")]


@app.command()
def build(
    stages: StagesArgument = None,
    again: Annotated[bool, typer.Option("--again", help="also those that are there already")] = False,
    control: Annotated[bool, typer.Option("--control", help="the control plane's worker, and no stage")] = False,
) -> None:
    """Build the images that the code here asks for and the engine has not."""
    from flows import derived, images

    if control:
        out.print(f"built {images.build_control(images.engine(), home() / 'wheels', out.print)}")
        return
    made = images.build(images.engine(), images.select(derived.stages(), stages or ()), home() / "wheels", out.print, again)
    out.print(f"built {len(made)} images" if made else "every image is there already")


@app.command("list")
def list_(stages: StagesArgument = None) -> None:
    """List the images that the code here asks for: whether they are there, their sizes."""
    from flows import derived, images
    from flows.console import rows_table

    found = images.rows(images.engine(), images.select(derived.stages(), stages or ()))
    out.print(rows_table([vars(row) for row in found]))


@app.command()
def verify(stages: StagesArgument = None) -> None:
    """Start every image and compare it with the code here: labels, files, imports, user."""
    from flows import derived, images

    chosen = images.select(derived.stages(), stages or ())
    if problems := images.verify(images.engine(), chosen):
        raise ConfigError("; ".join(problems))
    out.print(f"{len(chosen)} images hold exactly the code that lies here")


@app.command()
def labels() -> None:
    """Print the tags and labels of the moment, for `docker buildx bake -f docker-bake.json -f <this>`."""
    from flows import derived, environments

    sys.stdout.write(environments.bake_labels(derived.stages()))
