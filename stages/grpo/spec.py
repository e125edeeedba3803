"""The `grpo` stage: a model is rewarded for answers that a verifier accepts (paper 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from stages.core.artifacts import ArtifactManifest, Model, Problems
from stages.core.contracts import Facets, Input, Operational, Output, Resources, Stage, Work, output
from stages.engines import rules
from stages.finetuning.settings import TuningConfig, check_parent, child_facets, tuning_resources


class ContextStage(BaseModel):
    """One stretch of training at one length of response, from the weights of the one before."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(gt=0, description="batches of prompts that are answered and learned from")
    max_response: int = Field(gt=0, description="tokens of a response at most")
    group: int = Field(gt=1, description="responses to each prompt")


#: RECIPE 5, DeepScaleR: 8K, 16K, 24K with groups of 8, 16, 16; upstream raised the context at steps 1,040 and 1,520. The last one's
#: length is not printed: upstream's README trains to about step 1,750 in all.
DEEPSCALER = (
    ContextStage(steps=1040, max_response=8192, group=8),
    ContextStage(steps=480, max_response=16384, group=16),
    ContextStage(steps=230, max_response=24576, group=16),
)


class GrpoConfig(TuningConfig):
    """Defaults: DeepScaleR's recipe on verl (RECIPE 5). AReaL's is another set of values."""

    engine: Literal["trl", "verl", "areal"] = Field(
        default="trl",
        description="who trains: TRL in this process, or verl or AReaL as the paper. Part of the key: two engines never give the same bytes",
    )
    tokens_per_device: Operational[int] = Field(
        default=32_768, gt=0, description="tokens in a forward pass of engines 'verl' and 'areal', which pack responses (DeepScaleR: 32,768)"
    )
    learning_rate: float = Field(default=1e-6, gt=0, description="constant, no warmup (DeepScaleR, AReaL)")
    weight_decay: float = Field(default=0.01, ge=0, description="AdamW (verl's default, which DeepScaleR keeps)")
    grad_clip: float = Field(default=1.0, ge=0, description="largest global gradient norm; 0: no clipping (DeepScaleR: 1.0)")
    stages: tuple[ContextStage, ...] = Field(default=DEEPSCALER, min_length=1, description="stretches of growing response length")
    prompts: int = Field(default=128, gt=0, description="prompts in a batch of responses (DeepScaleR; Moxin's own script: 64; AReaL: 1024)")
    minibatches: int = Field(default=2, gt=0, description="optimizer steps a batch is split into (DeepScaleR: 128 / 64; AReaL: 4)")
    max_prompt: int = Field(default=1024, gt=0, description="tokens of a prompt; problems with a longer one are left out, and counted")
    instruction: str = Field(
        default=r"Let's think step by step and output the final answer within \boxed{}.",
        description="what follows a problem in its prompt (DeepScaleR's sentence)",
    )
    temperature: float = Field(default=0.6, gt=0, description="of sampling, in training and in evaluation (DeepScaleR, AReaL)")
    kl: float = Field(default=0.001, ge=0, description="weight of the KL loss against the stretch's start, low_var_kl (DeepScaleR; AReaL: 0.01, in its reward)")
    clip: float = Field(default=0.2, gt=0, lt=1, description="of the ratio of new to old probability (both recipes)")
    entropy: float = Field(default=0.001, ge=0, description="weight of the entropy bonus (DeepScaleR's fork; verl 0.9.1 has 0)")
    reward_right: float = Field(default=1.0, description="of a response that the verifier accepts (DeepScaleR: 1; AReaL: 5)")
    reward_wrong: float = Field(default=0.0, description="of any other (DeepScaleR: 0; AReaL: -5)")
    advantage: Literal["group", "batch"] = Field(
        default="group",
        description="reward less its group's mean, over the group's standard deviation (GRPO); or reward less the batch's mean over its "
        "tokens, over their standard deviation: PPO without a critic (AReaL: adv_norm, no group)",
    )
    rule: Literal["deepscaler", "math-verify"] = Field(default="deepscaler", description="how an answer is compared with the reference")
    eval_problems: int = Field(default=200, gt=0, description="held-out problems to measure parent and child on; the first ones")
    eval_samples: int = Field(default=8, gt=0, description="responses to each of them: pass@1 is their mean")
    verify_workers: Operational[int] = Field(default=1, gt=0, description="processes that check answers")

    @model_validator(mode="after")
    def _consistent(self) -> GrpoConfig:
        if self.prompts % self.minibatches:
            raise ValueError(f"prompts = {self.prompts} cannot be split into minibatches = {self.minibatches}")
        for number, stage in enumerate(self.stages):
            if self.prompts // self.minibatches * stage.group % self.micro_batch:
                raise ValueError(
                    f"stages.{number}: a minibatch has {self.prompts // self.minibatches * stage.group} responses, no multiple of "
                    f"micro_batch = {self.micro_batch}"
                )
        lengths = [stage.max_response for stage in self.stages]
        if lengths != sorted(lengths):
            raise ValueError(f"stages: max_response shrinks ({', '.join(map(str, lengths))}): each stretch allows what the one before did")
        if self.reward_right <= self.reward_wrong:
            raise ValueError(f"reward_right = {self.reward_right} is not above reward_wrong = {self.reward_wrong}")
        rules.require_reinforcement(self)
        return self

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt and response."""
        return self.max_prompt + self.stages[-1].max_response


class Grpo(Stage[GrpoConfig], env="post", revision=1, checkpoints=True):
    """Reinforce what a verifier accepts: GRPO, or PPO without a critic, over stretches of growing response length."""

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
        check_parent(node, inputs, template=None, lengths={"max_prompt": config.max_prompt, "stages": config.longest})

    @classmethod
    def resources(cls, config: GrpoConfig) -> Resources:
        return tuning_resources(config)

    @classmethod
    def work(cls, config: GrpoConfig, inputs: Mapping[str, Sequence[ArtifactManifest]]) -> Work:
        # 2 FLOPs a parameter and token to write, 2 for the reference, 6 to learn; half of the longest response is taken as the mean
        parameters = max([int(m.meta.get("parameters", 0)) for m in inputs.get("parent", ())], default=0)
        tokens = sum(s.steps * config.prompts * s.group * s.max_response / 2 for s in config.stages)
        return Work(flops=10.0 * parameters * tokens)
