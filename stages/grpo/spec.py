"""The `grpo` stage: a model is rewarded for answers that a verifier accepts (paper 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import gcd, lcm
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from stages.core.artifacts import ArtifactManifest, Model, Problems
from stages.core.config import Operational
from stages.core.renamed import Renamed
from stages.core.resources import Measuring, Processes, Resources, Work
from stages.core.shrinking import Rehearsal, Shrinks, whole
from stages.core.stage import Facets, Input, Output, Stage, output
from stages.lib.engines import validation
from stages.lib.finetuning import inference_memory
from stages.lib.finetuning.tuning_config import (
    TuningConfig,
    batch_of_measurement,
    check_parent,
    child_facets,
    heldout_count,
    measuring,
    parent_parameters,
    smaller_tuning,
    tuning_processes,
    tuning_resources,
)
from stages.lib.modeling.shape import ModelShape


class ContextPhase(BaseModel):
    """One phase of training at one length of response, from the weights of the one before."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: Annotated[int, Shrinks(wiring=3, shape=3)] = Field(
        gt=0, description="batches of prompts that are answered and learned from"
    )
    max_response_length: Annotated[int, Renamed("max_response", until="0.3"), Shrinks(wiring=32)] = Field(
        gt=0, description="tokens of a response at most"
    )
    num_generations: Annotated[int, Renamed("group", until="0.3"), Shrinks(wiring=4)] = Field(
        gt=1, description="responses to each prompt"
    )


DEEPSCALER = (
    ContextPhase(steps=1040, max_response_length=8192, num_generations=8),
    ContextPhase(steps=480, max_response_length=16384, num_generations=16),
    ContextPhase(steps=230, max_response_length=24576, num_generations=16),
)
"""DeepScaleR: 8K, 16K, 24K with groups of 8, 16, 16; upstream raised the context at steps 1,040 and 1,520. How long the
last one is, is not printed: upstream's README trains to about step 1,750 in all.
"""


class GrpoConfig(TuningConfig):
    """Defaults: DeepScaleR's recipe on verl. AReaL's is another set of values."""

    engine: Literal["trl", "verl", "areal"] = Field(
        default="trl",
        description=(
            "who trains: TRL in this process, or verl or AReaL as the paper. Part of the key: two engines never give"
            " the same bytes"
        ),
    )
    max_tokens_per_gpu: Annotated[Operational[int], Renamed("tokens_per_device", until="0.3")] = Field(
        default=32_768,
        gt=0,
        description="tokens in a forward pass of engines 'verl' and 'areal', which pack responses (DeepScaleR: 32,768)",
    )
    rollout_gpu_memory_utilization: Annotated[Operational[float], Renamed("rollout_memory", until="0.3")] = Field(
        default=0.6,
        gt=0,
        lt=1,
        description=(
            "engine 'verl': share of a GPU's memory that vLLM takes to write, beside the sharded training state (its"
            " README has the sum; DeepScaleR's 0.85 is for 1.5 billion parameters)"
        ),
    )
    concurrent_responses: Operational[int] = Field(
        default=64,
        gt=0,
        description=(
            "engine 'areal': responses that each GPU which writes is asked for at one time; what waits longer than"
            " AReaL's time limit is lost"
        ),
    )
    learning_rate: float = Field(default=1e-6, gt=0, description="constant, no warmup (DeepScaleR, AReaL)")
    weight_decay: float = Field(default=0.01, ge=0, description="AdamW (verl's default, which DeepScaleR keeps)")
    grad_clip: float = Field(
        default=1.0, ge=0, description="largest global gradient norm; 0: no clipping (DeepScaleR: 1.0)"
    )
    context_phases: Annotated[tuple[ContextPhase, ...], Renamed("stages", until="0.3")] = Field(
        default=DEEPSCALER, min_length=1, description="phases of growing response length"
    )
    prompts_per_step: Annotated[int, Renamed("prompts", until="0.3"), Shrinks(wiring=8, shape=16)] = Field(
        default=128,
        gt=0,
        description="prompts in a batch of responses (DeepScaleR; Moxin's own script: 64; AReaL: 1024)",
    )
    num_mini_batches: Annotated[int, Renamed("minibatches", until="0.3"), Shrinks(wiring=2)] = Field(
        default=2, gt=0, description="optimizer steps a batch is split into (DeepScaleR: 128 / 64; AReaL: 4)"
    )
    max_prompt_length: Annotated[int, Renamed("max_prompt", until="0.3"), Shrinks(wiring=512)] = Field(
        default=1024, gt=0, description="tokens of a prompt; problems with a longer one are left out, and counted"
    )
    instruction: str = Field(
        default=r"Let's think step by step and output the final answer within \boxed{}.",
        description="what follows a problem in its prompt (DeepScaleR's sentence)",
    )
    temperature: float = Field(
        default=0.6, gt=0, description="of sampling, in training and in evaluation (DeepScaleR, AReaL)"
    )
    kl_coef: Annotated[float, Renamed("kl", until="0.3")] = Field(
        default=0.001,
        ge=0,
        description=(
            "weight of the KL loss against the phase's start, low_var_kl (DeepScaleR; AReaL: 0.01, in its reward)"
        ),
    )
    clip_ratio: Annotated[float, Renamed("clip", until="0.3")] = Field(
        default=0.2, gt=0, lt=1, description="of the ratio of new to old probability (both recipes)"
    )
    entropy_coef: Annotated[float, Renamed("entropy", until="0.3")] = Field(
        default=0.001, ge=0, description="weight of the entropy bonus (DeepScaleR's fork; verl 0.9.1 has 0)"
    )
    reward_right: float = Field(
        default=1.0, description="of a response that the verifier accepts (DeepScaleR: 1; AReaL: 5)"
    )
    reward_wrong: float = Field(default=0.0, description="of any other (DeepScaleR: 0; AReaL: -5)")
    rollout_cache_gib: float = Field(
        default=4.0,
        gt=0,
        description=(
            "engine 'trl': memory for keys and values of the responses that are written side by side; part of the key,"
            " since draws go by what is written together"
        ),
    )
    advantage: Literal["group", "batch"] = Field(
        default="group",
        description=(
            "reward less its group's mean, over the group's standard deviation (GRPO); or reward less the batch's mean"
            " over its tokens, over their standard deviation: PPO without a critic (AReaL: adv_norm, no group)"
        ),
    )
    verifier_rule: Annotated[Literal["deepscaler", "math-verify"], Renamed("rule", until="0.3")] = Field(
        default="deepscaler", description="how an answer is compared with the reference"
    )
    eval_problems: Annotated[int, Shrinks(wiring=4, shape=4)] = Field(
        default=200, gt=0, description="held-out problems to measure parent and child on; the first ones"
    )
    eval_samples: Annotated[int, Shrinks(wiring=2, shape=2)] = Field(
        default=8, gt=0, description="responses to each of them: pass@1 is their mean"
    )
    verify_workers: Annotated[Operational[int], Shrinks(wiring=2, shape=2)] = Field(
        default=1, gt=0, description="processes that check answers"
    )

    @model_validator(mode="after")
    def _consistent(self) -> GrpoConfig:
        if self.prompts_per_step % self.num_mini_batches:
            raise ValueError(
                f"prompts_per_step = {self.prompts_per_step} cannot be split into num_mini_batches ="
                f" {self.num_mini_batches}"
            )
        for number, stage in enumerate(self.context_phases):
            responses = self.prompts_per_step // self.num_mini_batches * stage.num_generations
            if responses % self.micro_batch_size:
                raise ValueError(
                    f"context_phases.{number}: a minibatch has {responses} responses, no multiple"
                    f" of micro_batch_size = {self.micro_batch_size}"
                )
        lengths = [stage.max_response_length for stage in self.context_phases]
        if lengths != sorted(lengths):
            raise ValueError(
                f"context_phases: max_response_length shrinks ({', '.join(map(str, lengths))}): each phase allows what"
                " the one before did"
            )
        if self.reward_right <= self.reward_wrong:
            raise ValueError(f"reward_right = {self.reward_right} is not above reward_wrong = {self.reward_wrong}")
        validation.require_reinforcement(self)
        return self

    def rehearsed(self, values: dict[str, Any], rehearsal: Rehearsal) -> dict[str, Any]:
        """Batches that mini-batches, GPUs and forward passes divide; a checkpoint within each phase."""
        mini = values["num_mini_batches"]
        prompts = whole(values["prompts_per_step"], mini if self.engine == "trl" else lcm(mini, rehearsal.ranks))
        responses = [prompts // mini * phase.num_generations for phase in values["context_phases"]]
        if rehearsal.level == "shape":
            length = self.max_prompt_length * values["eval_samples"]
            values["eval_problems"] = batch_of_measurement(self, self.eval_problems, values["eval_problems"], length)
        return values | {
            "prompts_per_step": prompts,
            "micro_batch_size": gcd(values["micro_batch_size"], *responses),
            "checkpoint_every": 1,
        }

    def rollout_rows(self, shape: ModelShape, number: int) -> int:
        """Responses of a phase that engine 'trl' writes side by side, within `rollout_cache_gib`.

        Its weights are float32, and so are keys and values, under autocast too.
        """
        phase = self.context_phases[number]
        longest = self.max_prompt_length + phase.max_response_length
        fit = inference_memory.rows_at_once(shape, longest, "fp32", self.rollout_cache_gib * 2**30)
        return min(fit, self.prompts_per_step * phase.num_generations)

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt and response."""
        return self.max_prompt_length + self.context_phases[-1].max_response_length


class Grpo(Stage[GrpoConfig], env="post", revision=2, checkpoints=True, reproducible="no"):
    """Reinforce what a verifier accepts: GRPO, or PPO without a critic, in phases of growing response length."""

    parent: Input[Model]
    problems: Input[Problems]
    heldout: Input[Problems]
    model: Output[Model] = output()

    @classmethod
    def facets(cls, config: GrpoConfig, inputs: Mapping[str, Sequence[Facets]]) -> Mapping[str, Facets]:
        return {"model": child_facets(inputs["parent"][0], None)}

    @classmethod
    def check_facets(cls, node: str, config: GrpoConfig, inputs: Mapping[str, Sequence[tuple[str, Facets]]]) -> None:
        super().check_facets(node, config, inputs)
        check_parent(
            node,
            inputs,
            template=None,
            lengths={
                "max_prompt_length": config.max_prompt_length,
                "context_phases": config.longest + (config.engine == "areal"),
            },
        )

    @classmethod
    def processes(cls, config: GrpoConfig) -> Processes:
        return tuning_processes(config)

    @classmethod
    def resources(cls, config: GrpoConfig) -> Resources:
        return tuning_resources(config)

    @classmethod
    def check_resources(cls, node: str, config: GrpoConfig, resources: Resources) -> None:
        if config.engine != "trl":
            validation.require_shared_responses(node, config, resources.ranks)

    @classmethod
    def work(cls, config: GrpoConfig, inputs: Mapping[str, Sequence[ArtifactManifest]]) -> Work:
        # A token is written (2 FLOPs a parameter), read by the reference (2, with a KL term), read again for its old
        # probability where an engine writes (2), and learned from (6). Half of the longest response is taken as the
        # mean. AReaL's halves of the GPUs wait for each other.
        parameters, measured = parent_parameters(inputs), cls.measuring(config, inputs)
        tokens = sum(
            s.steps * config.prompts_per_step * s.num_generations * s.max_response_length / 2
            for s in config.context_phases
        )
        turns = 2 if config.engine == "areal" else 1
        passes = 6.0 + 2.0 * (config.kl_coef > 0) + 2.0 * (config.engine != "trl")
        if not parameters:
            return Work()
        written = (
            2.0 * parameters * tokens * turns + measured.written_flops / 2
        )  # an answer stops at half of its longest, too
        return Work(flops=passes * parameters * tokens * turns + measured.flops, written_flops=written)

    @classmethod
    def measuring(cls, config: GrpoConfig, inputs: Mapping[str, Sequence[ArtifactManifest]]) -> Measuring:
        problems = heldout_count(config.eval_problems, inputs, "heldout")
        answers = (problems * config.eval_samples, config.context_phases[-1].max_response_length)
        return measuring(config, inputs, read=(0, 0), written=[answers], prompt=config.max_prompt_length)

    @classmethod
    def smaller(cls, config: GrpoConfig) -> GrpoConfig | None:
        if config.engine == "trl":
            return smaller_tuning(config)
        tokens = max(config.longest, config.max_tokens_per_gpu // 2)
        return config.operated(max_tokens_per_gpu=tokens) if tokens < config.max_tokens_per_gpu else None
