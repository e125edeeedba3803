"""What an attempt needs of a machine, and how much work it is: what launchers translate, and `moxin plan` counts."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Processes(enum.StrEnum):
    """How the processes of an attempt come to be (`Stage.processes`). Said by the stage; a launcher only does it."""

    SINGLE = "single"  # one process, with one GPU at most
    TORCHRUN = "torchrun"  # the launcher starts `Resources.ranks` processes on each node, under torchrun
    ENGINE = "engine"  # one process; the engine that it drives starts `Resources.ranks` of its own, on one node


class Resources(BaseModel):
    """What one attempt needs. Launchers translate it; it is never part of a key."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cpus: float = Field(default=1, gt=0, description="cores")
    memory_gib: float = Field(default=2, gt=0)
    gpus: int = Field(default=0, ge=0, description="GPUs a node")
    nodes: int = Field(default=1, ge=1)
    nproc_per_node: int = Field(
        default=1,
        ge=1,
        description=(
            "processes a node that train one model, on nodes without GPUs: torchrun's --nproc-per-node; with GPUs, one"
            " each"
        ),
    )
    scratch_gib: float = Field(default=10, gt=0)
    grace_seconds: int = Field(
        default=30,
        ge=10,
        le=65_535,  # of sbatch's --signal
        description=(
            "between being asked to stop and being killed, for a last checkpoint: Slurm's --signal, a pod's"
            " terminationGracePeriodSeconds, a container's stop timeout; a site that preempts may give less"
        ),
    )
    network: Literal["store", "internet"] = Field(
        default="store", description="what a container may reach: the object store alone, or all"
    )
    material: bool = Field(
        default=False, description="reads the Python library and packages of the machine that launches it"
    )

    @model_validator(mode="after")
    def _one_process_a_gpu(self) -> Resources:
        if self.gpus and self.nproc_per_node not in (1, self.gpus):
            raise ValueError(
                f"nproc_per_node = {self.nproc_per_node}, but gpus = {self.gpus}: a GPU has one process; leave"
                " nproc_per_node out"
            )
        return self

    @property
    def ranks(self) -> int:
        """Processes of a node that train one model together: one for each GPU, or `nproc_per_node` where there is
        none.
        """
        return self.gpus or self.nproc_per_node


@dataclass(frozen=True)
class Work:
    """The work of one attempt, for the cost model: floating-point operations and bytes read."""

    flops: float = 0.0
    bytes: float = 0.0
    written_flops: float = 0.0
    """Floating-point operations of writing text, which are not in `flops`: a token is written after the other, so that
    memory bounds it.
    """
    one_gpu_flops: float = 0.0
    """Of `flops`, those of one GPU while the node's others wait: measuring, whose models fit on one."""


@dataclass(frozen=True)
class Measuring:
    """What measuring a parent and its child takes, on one GPU, for the plan. Its operations are in the attempt's
    `Work`, too.
    """

    read_tokens: float
    """Tokens that a model reads to give them probabilities, both models."""
    written_tokens: float
    """Tokens that are written at most, both models."""
    flops: float
    written_flops: float
    weights_bytes: float
    """Of the one model that is loaded at a time, in the training's precision."""
    cache_bytes: float
    """Keys and values of the answers that are being written, at most."""
    activation_bytes: float
    """Of the largest forward pass."""

    @property
    def memory_bytes(self) -> float:
        """Needed at one time, before and after training, when nothing else is on the GPU: reading and writing take
        turns.
        """
        return self.weights_bytes + max(self.cache_bytes, self.activation_bytes)
