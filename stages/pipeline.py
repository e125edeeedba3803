"""The DAG of the paper, declared once: nodes and edges, nothing else. Values live in infra/profiles/*.toml.

Everything else is derived from here: Prefect tasks and deployments, `moxin plan`, prefect.yaml, the README's diagram.
"""

from stages.benchmarks.spec import Benchmarks
from stages.capability.spec import Capability
from stages.collect.spec import Collect
from stages.contamination.spec import Contamination
from stages.conversations.spec import Conversations
from stages.core.graph import Pipeline
from stages.dedup.spec import Dedup
from stages.dpo.spec import Dpo
from stages.evaluate.spec import Evaluate
from stages.evaluate_vlm.spec import EvaluateVlm
from stages.execute_code.spec import ExecuteCode
from stages.grpo.spec import Grpo
from stages.image_data.spec import ImageData
from stages.image_features.spec import SeeImages
from stages.ingest.spec import Ingest
from stages.preferences.spec import Preferences
from stages.pretrain.spec import Pretrain
from stages.problems.spec import Problems
from stages.quality.spec import Quality
from stages.sft.spec import Sft
from stages.tokenize.spec import Tokenize
from stages.tokenizer.spec import TrainTokenizer
from stages.vlm.spec import TrainVlm

# Raw sources, each cleaned by its own recipe (paper 3.3): SlimPajama for text, DCLM for web, the-stack-dedup for code.
collect = Collect(name="collect")
ingest_text = Ingest(name="ingest_text", raw=collect.text)
ingest_web = Ingest(name="ingest_web", raw=collect.web)
ingest_code = Ingest(name="ingest_code", raw=collect.code)
dedup_text = Dedup(name="dedup_text", sources=[ingest_text.documents])
dedup_web = Dedup(name="dedup_web", sources=[ingest_web.documents])
dedup_code = Dedup(name="dedup_code", sources=[ingest_code.documents])
quality_web = Quality(name="quality_web", documents=dedup_web.documents, positives=dedup_text.documents)
corpus = [dedup_text.documents, quality_web.kept, dedup_code.documents]

# Tokenizer, and the corpus packed at the two context lengths of phases 1 and 2 (paper 3.4).
tokenizer = TrainTokenizer(name="tokenizer", documents=corpus)
tokenize_short = Tokenize(name="tokenize_short", documents=corpus, tokenizer=tokenizer.tokenizer)
tokenize_long = Tokenize(name="tokenize_long", documents=corpus, tokenizer=tokenizer.tokenizer)

# Capability data: the training splits of benchmarks (paper 3.3.3), and their test splits for the evaluation.
capability = Capability(name="capability", documents=[ingest_text.documents, ingest_web.documents])
tokenize_capability = Tokenize(
    name="tokenize_capability", documents=[capability.train, dedup_text.documents], tokenizer=tokenizer.tokenizer
)

# Three phases. After phase 2 the model is "Original", after phase 3 "Enhanced", the released Base (paper 3.4).
pretrain_1 = Pretrain(name="pretrain_1", tokens=tokenize_short.shards, tokenizer=tokenizer.tokenizer)
pretrain_2 = Pretrain(
    name="pretrain_2",
    tokens=tokenize_long.shards,
    tokenizer=tokenizer.tokenizer,
    parent=pretrain_1.model,
    parent_moments=pretrain_1.moments,
)
pretrain_3 = Pretrain(
    name="pretrain_3",
    tokens=tokenize_capability.shards,
    tokenizer=tokenizer.tokenizer,
    parent=pretrain_2.model,
    parent_moments=pretrain_2.moments,
)

# The ablation of the paper: both models on the same suites (Tables 2, 3).
evaluate_original = Evaluate(name="evaluate_original", model=pretrain_2.model, suites=[capability.suite])
evaluate_enhanced = Evaluate(name="evaluate_enhanced", model=pretrain_3.model, suites=[capability.suite])

# What post-training learns from: two branches of instructions and preferences (paper 4), problems and reasoning traces
# (5).
instructions_tulu = Conversations(name="instructions_tulu", documents=[ingest_text.documents])
instructions_infinity = Conversations(name="instructions_infinity", documents=[ingest_web.documents])
preferences_tulu = Preferences(name="preferences_tulu", documents=[ingest_text.documents])
preferences_infinity = Preferences(name="preferences_infinity", documents=[ingest_web.documents])
problems = Problems(name="problems")
reasoning_traces = Conversations(name="reasoning_traces", problems=problems.train, reserved=problems.heldout)

# Two branches of instruction and preference tuning from the same base: Instruct, and Moxin-7B-II with its DPO (paper
# 4).
sft_tulu = Sft(
    name="sft_tulu", parent=pretrain_3.model, conversations=instructions_tulu.train, heldout=instructions_tulu.heldout
)
dpo_tulu = Dpo(
    name="dpo_tulu", parent=sft_tulu.model, preferences=preferences_tulu.train, heldout=preferences_tulu.heldout
)
sft_infinity = Sft(
    name="sft_infinity",
    parent=pretrain_3.model,
    conversations=instructions_infinity.train,
    heldout=instructions_infinity.heldout,
)
dpo_infinity = Dpo(
    name="dpo_infinity",
    parent=sft_infinity.model,
    preferences=preferences_infinity.train,
    heldout=preferences_infinity.heldout,
)

# The same tasks for every model of both branches (Tables 4, 5).
evaluate_sft_tulu = Evaluate(name="evaluate_sft_tulu", model=sft_tulu.model, suites=[capability.suite])
evaluate_dpo_tulu = Evaluate(name="evaluate_dpo_tulu", model=dpo_tulu.model, suites=[capability.suite])
evaluate_sft_infinity = Evaluate(name="evaluate_sft_infinity", model=sft_infinity.model, suites=[capability.suite])
evaluate_dpo_infinity = Evaluate(name="evaluate_dpo_infinity", model=dpo_infinity.model, suites=[capability.suite])

# What they can do (Table 6). Programs are written by one node, and run by another that has nothing else.
benchmarks = Benchmarks(name="benchmarks")
skills = [capability.suite, benchmarks.suite]
skills_dpo_tulu = Evaluate(name="skills_dpo_tulu", model=dpo_tulu.model, suites=skills)
code_dpo_tulu = ExecuteCode(name="code_dpo_tulu", completions=skills_dpo_tulu.completions)
skills_sft_infinity = Evaluate(name="skills_sft_infinity", model=sft_infinity.model, suites=skills)
code_sft_infinity = ExecuteCode(name="code_sft_infinity", completions=skills_sft_infinity.completions)

# Reasoning (paper 5): the instruct model learns to think aloud.
sft_reason = Sft(
    name="sft_reason",
    parent=dpo_tulu.model,
    conversations=reasoning_traces.train,
    heldout=reasoning_traces.heldout,
    problems=problems.heldout,
)

# Reinforcement, twice from the same parent (paper 5 names the reasoning model in one place and the DPO model in
# another; docs/recipe.md: a declared choice): DeepScaleR's recipe gives the Reasoning model, AReaL's the other one of
# Table 9.
grpo_deepscaler = Grpo(
    name="grpo_deepscaler", parent=sft_reason.model, problems=problems.train, heldout=problems.heldout
)
grpo_areal = Grpo(name="grpo_areal", parent=sft_reason.model, problems=problems.train, heldout=problems.heldout)

# Mathematics, before and after reinforcement (Table 7).
math_sft_reason = Evaluate(name="math_sft_reason", model=sft_reason.model, suites=[benchmarks.suite])
math_grpo_deepscaler = Evaluate(name="math_grpo_deepscaler", model=grpo_deepscaler.model, suites=[benchmarks.suite])
math_grpo_areal = Evaluate(name="math_grpo_areal", model=grpo_areal.model, suites=[benchmarks.suite])

# The vision-language branch (paper 6, 7.5). Its parent is Base: the paper says so, upstream's code names the Instruct
# model. The frozen towers look at every image once, whatever is trained on them.
scenes = ImageData(name="scenes")
image_features = SeeImages(name="image_features", images=scenes.train)
vlm = TrainVlm(
    name="vlm",
    base=pretrain_3.model,
    conversations=scenes.train,
    towers=image_features.towers,
    features=image_features.features,
)
evaluate_vlm = EvaluateVlm(name="evaluate_vlm", model=vlm.model, suite=scenes.suite)

# Which evaluation items the training data holds: everything that any of the models learned from, read once.
contamination = Contamination(
    name="contamination",
    suites=skills,
    image_suites=[scenes.suite],
    documents=[*corpus, capability.train],
    conversations=[instructions_tulu.train, instructions_infinity.train, reasoning_traces.train],
    preferences=[preferences_tulu.train, preferences_infinity.train],
    problems=[problems.train],
    images=[scenes.train],
)

PIPELINE = Pipeline(
    [
        collect,
        ingest_text,
        ingest_web,
        ingest_code,
        dedup_text,
        dedup_web,
        dedup_code,
        quality_web,
        tokenizer,
        tokenize_short,
        tokenize_long,
        capability,
        tokenize_capability,
        pretrain_1,
        pretrain_2,
        evaluate_original,
        pretrain_3,
        evaluate_enhanced,
        instructions_tulu,
        instructions_infinity,
        preferences_tulu,
        preferences_infinity,
        problems,
        reasoning_traces,
        sft_tulu,
        dpo_tulu,
        sft_infinity,
        dpo_infinity,
        evaluate_sft_tulu,
        evaluate_dpo_tulu,
        evaluate_sft_infinity,
        evaluate_dpo_infinity,
        benchmarks,
        skills_dpo_tulu,
        code_dpo_tulu,
        skills_sft_infinity,
        code_sft_infinity,
        sft_reason,
        grpo_deepscaler,
        grpo_areal,
        math_sft_reason,
        math_grpo_deepscaler,
        math_grpo_areal,
        scenes,
        image_features,
        vlm,
        evaluate_vlm,
        contamination,
    ]
)
