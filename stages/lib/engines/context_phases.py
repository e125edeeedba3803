"""What the engines of reinforcement share: phases one after the other, their log, checkpoints, resume, and the model
at the end.

An engine leaves its whole checkpoints in `<phase>/checkpoints/global_step_<n>` and the newest one's number in a
tracker file (verl's own layout). A checkpoint of the stage holds that folder, the number of the phase, and after the
first its start.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from stages.core.context import Context
from stages.core.files import ROOT
from stages.core.interpreters import interpreter
from stages.lib.engines import process
from stages.lib.engines.checkpoint_conversion import link_tree, load_weights, prepare_parent, read_safetensors
from stages.lib.finetuning.trl_trainer import check

LATEST = "latest_checkpointed_iteration.txt"
Rows = Iterable[Mapping[str, Any]]
"""Prompts of a phase, in order: `{"prompt": turns, "answer": text}`."""


@dataclass(frozen=True)
class PhaseRun:
    """One phase of an attempt."""

    ctx: Context[Any]
    number: int
    folder: Path
    start: Path
    """The model that it begins from."""
    python: str
    env: Mapping[str, str]

    @property
    def steps(self) -> int:
        """Batches of prompts."""
        return self.ctx.config.context_phases[self.number].steps

    @property
    def before(self) -> int:
        """Steps of the phases before."""
        return sum(stage.steps for stage in self.ctx.config.context_phases[: self.number])

    @property
    def checkpoints(self) -> Path:
        """Where the engine keeps them."""
        return self.folder / "checkpoints"

    @property
    def log_name(self) -> str:
        """For people."""
        return f"phase {self.number + 1} of {len(self.ctx.config.context_phases)}"


class Program(Protocol):
    """What an engine has of its own."""

    name: str
    version: str

    def command(self, phase: PhaseRun, rows: Rows) -> list[str]:
        """Write what the engine reads; return what runs it through the phase, or on from its newest checkpoint."""
        ...

    def read(self, line: str) -> tuple[int, dict[str, float]] | None:
        """Step within the phase and its metrics, by our names, that a line of the log tells."""
        ...

    def collect(self, phase: PhaseRun) -> Path:
        """A folder with the safetensors of the phase's last step."""
        ...


def reinforce(
    ctx: Context[Any],
    model: torch.nn.Module,
    schedule: Callable[[int], Rows],
    checkpoint: tuple[int, Any] | None,
    program: Program,
    **env: str,
) -> None:
    """Train `model` (the parent's weights) in place. schedule: the prompts of a phase; checkpoint: the newest
    checkpoint.
    """
    config, root = ctx.config, Path(ctx.scratch) / program.name
    python = interpreter(ctx.node, program.name, "= 'trl'")
    root.mkdir()
    parent = root / "parent"
    prepare_parent(Path(ctx.input("parent").path), parent, config.attention_dropout)
    first, start = restore(ctx, root, checkpoint)
    for number in range(first, len(config.context_phases)):
        folder = root / f"phase-{number}"
        folder.mkdir(exist_ok=True)
        phase = PhaseRun(ctx, number, folder, start, python, process.environment(root, PYTHONPATH=str(ROOT), **env))
        follower = Follower(phase, program.read)
        keeper = Checkpoints(phase, follower)
        command = program.command(phase, schedule(number))
        ctx.log(f"{program.name} {program.version}, {phase.log_name}: {' '.join(command)}")
        if keeper.known < phase.steps:
            process.run(ctx, program.name, command, env=phase.env, on_line=follower, on_tick=keeper.publish)
        start = hand_over(program.collect(phase), parent, folder / "start")
    load_weights(model, read_safetensors(start), program.name)


def hand_over(weights: Path, parent: Path, start: Path) -> Path:
    """A phase's weights as a Hugging Face folder, with the parent's tokenizer and configuration."""
    start.mkdir()
    for path in parent.iterdir():
        if not path.name.startswith("model"):
            shutil.copyfile(path, start / path.name)
    for path in [*weights.glob("*.safetensors"), *weights.glob("model.safetensors.index.json")]:
        path.rename(start / path.name)
    return start


class Follower:
    """Passes the metrics of an engine's log on. `step`: the last one within the phase whose metrics came."""

    def __init__(self, phase: PhaseRun, read: Callable[[str], tuple[int, dict[str, float]] | None]) -> None:
        self._ctx, self._read, self._offset = phase.ctx, read, phase.before
        self._total = sum(stage.steps for stage in phase.ctx.config.context_phases)
        self.step, self._clock = 0, process.StepClock()

    def __call__(self, line: str) -> None:
        if (parsed := self._read(line)) is None:
            return
        step, row = self._offset + parsed[0], parsed[1] | self._clock.lap()
        check(self._ctx, step, row)
        self._ctx.metric(step, **{name: value for name, value in row.items() if math.isfinite(value)})
        self._ctx.progress(step, self._total, "steps")
        self.step = parsed[0]


class Checkpoints:
    """Publishes an engine's checkpoints when its tracker file says that they are whole, and the metrics of their step
    have come: engines save first and tell then, and an attempt that is stopped in between would lose the row.
    """

    def __init__(self, phase: PhaseRun, follower: Follower) -> None:
        self._phase, self._ctx, self._folder, self._follower = phase, phase.ctx, phase.checkpoints, follower
        self.known = _tracked(self._folder)

    def publish(self) -> None:
        """Publish the newest one, once; older ones, and those of the trainer's, are removed."""
        step = _tracked(self._folder)
        if step == self.known or step > self._follower.step:
            return
        self.known = step
        number = self._phase.number
        if number + 1 == len(self._ctx.config.context_phases) and step == self._phase.steps:
            return  # the end: the model is about to be written
        kept = self._folder.parent / f"kept_{step}"
        link_tree(self._folder / f"global_step_{step}", kept / f"global_step_{step}")
        if number:
            link_tree(self._phase.start, kept / "start")
        (kept / "position.json").write_text(json.dumps({"phase": number, "step": step}))
        self._ctx.checkpoints.save(self._phase.before + step, kept)
        shutil.rmtree(kept)
        for old in self._folder.glob("global_step_*"):
            if int(old.name.rpartition("_")[2]) < step:  # a newer one may be on its way
                shutil.rmtree(old)


def _tracked(folder: Path) -> int:
    """Step of the newest whole checkpoint; 0: none."""
    text = (folder / LATEST).read_text() if (folder / LATEST).is_file() else ""
    return int(text) if text.strip().isdigit() else 0


def restore(ctx: Context[Any], root: Path, checkpoint: tuple[int, Any] | None) -> tuple[int, Path]:
    """Put the newest checkpoint of this key where the engine finds it. Returns the phase to go on with, and the model
    it began from.
    """
    if checkpoint is None:
        return 0, root / "parent"
    position = json.loads((Path(checkpoint[1]) / "position.json").read_text())
    folder = root / f"phase-{position['phase']}" / "checkpoints"
    name = f"global_step_{position['step']}"
    link_tree(Path(checkpoint[1]) / name, folder / name)
    (folder / LATEST).write_text(str(position["step"]))
    start = root / "parent"
    if (Path(checkpoint[1]) / "start").is_dir():
        start = root / "restored"
        link_tree(Path(checkpoint[1]) / "start", start)
    ctx.log(f"goes on after step {checkpoint[0]}, in phase {position['phase'] + 1}")
    return int(position["phase"]), start
