"""`moxin check --sources`: open one row of every source, find every image, ask every launcher, within a minute.

Rows are opened by the client libraries that the stages use, in programs of their own (`Stage.probes`,
stages/*/probe.py): the control plane imports none of them. What has not answered by the deadline is a problem too.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from flows import environments, image_checks, images, preflight
from flows.launch import launcher
from flows.preflight import Finding
from flows.profiles import Profile
from flows.settings import Settings
from stages.core.errors import StageError
from stages.core.files import ROOT
from stages.core.graph import Pipeline
from stages.core.preflight import Probe, Problem

DEADLINE = 50.0
"""Seconds for all programs together: the rest of the minute is for their start and for the launchers."""


@dataclass(frozen=True)
class Opened:
    """A source that gave a row."""

    node: str
    what: str
    answer: str

    def row(self) -> dict[str, Any]:
        """As JSON values."""
        return {"node": self.node, "source": self.what, "found": self.answer}


def check(
    pipeline: Pipeline, profile: Profile, settings: Settings | None, deadline: float = DEADLINE
) -> tuple[list[Finding], list[Opened]]:
    """All problems of a profile, each with its remedy, and the sources that answered. settings: None without a store to
    run with.
    """
    pipeline = profile.wire(pipeline)
    findings = preflight.problems(pipeline, profile, list(pipeline.nodes), deep=True)
    probes = [(node.name, probe) for node in pipeline for probe in node.probes(profile.configs)]
    faults, opened = _open(probes, deadline)
    return [*findings, *faults, *_launchers(profile, settings), *_images(pipeline, profile)], opened


def _open(probes: list[tuple[str, Probe]], deadline: float) -> tuple[list[Finding], list[Opened]]:
    modules = list(dict.fromkeys(probe.module for _, probe in probes))
    groups = {module: [(node, probe) for node, probe in probes if probe.module == module] for module in modules}
    answers: dict[str, dict[int, dict[str, Any]]] = {module: {} for module in modules}
    threads = [
        threading.Thread(
            target=ask_program, args=(module, [p for _, p in groups[module]], answers[module], deadline), daemon=True
        )
        for module in modules
    ]
    for thread in threads:
        thread.start()
    until = time.monotonic() + deadline + 5
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    faults: list[Finding] = []
    opened: list[Opened] = []
    for module, group in groups.items():
        for number, (node, probe) in enumerate(group):
            answer = answers[module].get(number)
            if answer and answer["ok"]:
                opened.append(Opened(node, probe.what, answer["text"]))
            else:
                text = answer["text"] if answer else f"no answer within {deadline:.0f} s"
                faults.append(Finding(node, Problem(probe.key, probe.what, text, _remedy(text, probe.what))))
    return faults, opened


def _remedy(text: str, what: str) -> str:
    """The one thing to do, by what a client library said."""
    said = text.lower()
    if "gated" in said or "401" in said or "403" in said or "unauthorized" in said or "forbidden" in said:
        return f"accept the terms on the page of {what} and set HF_TOKEN; if the page is gone, name a copy of it"
    if "404" in said or "doesn't exist" in said or "not found" in said or "cannot be accessed" in said:
        return "correct the name or the revision, or name a copy of it (mirrors, or another data set)"
    if "429" in said or "too many requests" in said:
        return "wait, and set HF_TOKEN: the limit for known users is higher"
    if any(
        word in said
        for word in (
            "no answer",
            "connection",
            "client has been closed",
            "resolve",
            "timed out",
            "timeout",
            "max retries",
            "offline",
            "unreachable",
            "network",
        )
    ):
        return "check this machine's network and proxy, or name a mirror"
    return "correct the setting, or leave the source out"


def ask_program(module: str, probes: Sequence[Probe], answers: dict[int, dict[str, Any]], deadline: float) -> None:
    """Run a probe program (stages/core/probing.py), and end it at the deadline; `answers` fills as they come."""
    process = subprocess.Popen(
        [sys.executable, "-m", module],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    stop = threading.Timer(deadline, process.kill)
    stop.start()
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write("".join(json.dumps(dict(probe.request)) + "\n" for probe in probes))
            process.stdin.close()
        except BrokenPipeError:  # it could not even start: each probe has no answer
            pass
        for line in process.stdout:
            answer = json.loads(line)
            answers[answer["number"]] = answer
    finally:
        stop.cancel()
        process.kill()
        process.wait()


def _launchers(profile: Profile, settings: Settings | None) -> Iterator[Finding]:
    """Each launcher of the profile, asked for the jobs of a run that there is not: that takes whatever starting one
    takes, and does nothing.
    """
    if settings is None:
        first = next(iter(profile.launchers))
        yield Finding(
            first,
            Problem(
                "MOXIN_S3_ENDPOINT",
                None,
                "there is no object store, and launchers were not asked",
                "start the embedded one with 'moxin up', or set it",
            ),
        )
        return
    for name in sorted(set(profile.launchers.values())):
        try:
            launcher(name, settings).reap(run_id="check")
        except StageError as error:
            nodes = [node for node, used in profile.launchers.items() if used == name]
            yield Finding(
                nodes[0],
                Problem(
                    "launcher",
                    name,
                    str(error).partition("\n")[0],
                    f"start it, or run {len(nodes)} nodes by another launcher",
                ),
            )


def _images(pipeline: Pipeline, profile: Profile) -> Iterator[Finding]:
    """The images of nodes that run in containers, as far as this machine's Docker daemon knows them."""
    node_of_stage: dict[str, str] = {}
    for node in pipeline:
        if profile.launchers[node.name] in ("docker", "kubernetes"):
            node_of_stage.setdefault(node.stage, node.name)
    if not node_of_stage:
        return
    chosen = [
        environments.stage_image(stage, next(n.env for n in pipeline if n.stage == stage)) for stage in node_of_stage
    ]
    try:
        rows = image_checks.image_rows(images.docker_client(), chosen)
    except StageError as error:
        yield Finding(
            next(iter(node_of_stage.values())),
            Problem(
                "image",
                chosen[0].reference,
                f"cannot be looked up: {error}",
                "start a Docker daemon here, or look in the registry",
            ),
        )
        return
    for image, row in zip(chosen, rows, strict=True):
        if row.state != "ok":
            yield Finding(
                node_of_stage[image.stage], Problem("image", image.reference, row.state, "run 'moxin images build'")
            )
