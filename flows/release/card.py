"""The card of a released model, README.md: metadata for the hub, and what it is, was made of, scores, cost and cannot.

Every number stands in a row that names the artifact or report that it comes from, by the first twelve digits of its
digest; the table of provenance has the whole digests.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flows.plan import origin
from flows.release import energy
from flows.release.corpora import NOT_COUNTED, Corpus
from flows.release.evaluations import Evaluations, Result, eval_results
from flows.release.lineage import Lineage, flat, inputs
from stages.core.messages import StageResult
from stages.lib.formats.paired_eval import Effect, from_stats

PAPER = "arXiv 2412.06845"
TRANSFORMERS = {"MistralForCausalLM"}
"""Architectures that transformers and vLLM have themselves: nothing of the folder is run."""
NOT_LIMITED = "The model was not examined for bias, toxic text or private data."
LIMITS = {
    "pretrain": "A base model: it continues text, follows no instructions, and repeats its data, wrong or not.",
    "sft": "It answers in the manner of its data, and repeats what that says, wrong or not.",
    "dpo": "It prefers what its pairs prefer; where a program or another model made those, it takes over their errors.",
    "grpo": "Its reward looks at the final answer alone: the reasoning before it may be wrong, or no reason for it.",
    "vlm": "It answers briefly, often from habit rather than from the image.",
}
"""By stage: what every model that it makes has to be told of."""
DISAGREEMENTS = {
    "pretrain": "The paper prints a learning rate of 2e-6; its released scripts have 1e-5 and 2e-5 (docs/recipe.md).",
    "grpo": (
        "Sources disagree on the parent: the paper names the reasoning model in one place and the DPO model in another"
        " (its sections 5 and 7.4). What it was here stands above: a declared choice."
    ),
    "vlm": (
        "Sources disagree on the base (the paper: Moxin-7B-Base; the released code: Instruct; its configuration: LLM)"
        " and on the data (the paper lists LLaVA's 558K captions; the single stage that it describes never reads them)."
        " What both were here stands above: declared choices (docs/recipe.md)."
    ),
}
"""By stage: where the paper and its released code do not say the same."""


@dataclass(frozen=True)
class Facts:
    """All that a card is made from. contamination: Markdown lines, empty when nothing was measured; uses: of every
    node of the lineage; gpu: the prices and watts that they were reckoned with; base: name of the released model that
    this one was trained from.
    """

    lineage: Lineage
    architecture: str
    dtypes: tuple[str, ...]
    parameters: int
    """Counted in the weights themselves, of the whole model."""
    corpora: Sequence[Corpus]
    evaluations: Evaluations
    uses: Sequence[energy.Use]
    gpu: str
    base: str | None = None
    owner: str | None = None
    contamination: Sequence[str] = ()
    overlaps: Mapping[str, str] | None = None
    """Digests of what contamination was read from, by node."""
    languages: Sequence[str] = ()
    files: Mapping[str, str] | None = None
    """SHA-256 of the weights, by file."""
    beside: Sequence[str] = ()
    """Other files of the folder that a reader should know of, as Markdown list items."""


def metadata(facts: Facts) -> Any:
    """The metadata as huggingface_hub's ModelCardData. Raises ValueError where its own check refuses them."""
    from huggingface_hub import ModelCardData

    lineage = facts.lineage
    tag = pipeline_tag(facts)
    data_sets = sorted({name for corpus in facts.corpora for name in corpus.data_sets})
    results = eval_results(facts.evaluations.results, tag)
    extra: dict[str, Any] = {} if facts.base is None else {"base_model_relation": "finetune"}
    return ModelCardData(
        base_model=None if facts.base is None else named(facts.base, facts.owner),
        datasets=data_sets or None,
        eval_results=results or None,
        language=list(facts.languages) or None,
        library_name="transformers",
        license=lineage.model.license.lower(),
        model_name=lineage.name if results else None,
        pipeline_tag=tag,
        tags=["moxin", lineage.result.stage, *(["toy-data"] if lineage.toy else [])],
        **extra,
    )


def named(name: str, owner: str | None) -> str:
    """A repository of the hub."""
    return f"{owner}/{name}" if owner else name


def pipeline_tag(facts: Facts) -> str:
    """The hub's task."""
    return "text-generation" if facts.architecture in TRANSFORMERS else "image-text-to-text"


def render(facts: Facts) -> str:
    """README.md."""
    sections = (
        _head(facts), _use(facts), _data(facts), _recipe(facts), _evaluation(facts), _contamination(facts),
        _limits(facts), _cost(facts), _provenance(facts),
    )  # fmt: skip
    front = metadata(facts).to_yaml().strip()
    return f"---\n{front}\n---\n\n" + "\n".join(line for section in sections for line in [*section, ""])


def short(digest: str) -> str:
    """A digest as a row names it."""
    return f"`{digest[:12]}`"


def _head(facts: Facts) -> list[str]:
    lineage = facts.lineage
    model, count = lineage.model, facts.parameters
    lines = [
        f"# {lineage.name}",
        "",
        f"{model.description} It has the place of {model.name} in the paper's family ({PAPER}), and was made by the"
        f" Moxin pipeline in profile `{lineage.profile}`, node `{model.node}`.",
    ]
    if lineage.name != model.release:
        lines += [
            "",
            f"> **Not the paper's model.** It has its recipe with other sizes: {_number(count)} parameters.",
        ]
    if lineage.toy:
        makers = ", ".join(f"`{corpus.node}`" for corpus in facts.corpora if corpus.made_here)
        lines += [
            "",
            "> **Toy data.** Some of what it learned from or is evaluated on was made by the run itself on one machine,"
            f" in the formats of the real sets ({makers or 'its raw text'}). Such scores are called `toy-...`; they"
            " show that the machinery works, and say nothing of the benchmarks.",
        ]
    rows = [
        ("architecture", f"`{facts.architecture}`"),
        ("parameters", _number(count)),
        ("type of the weights", ", ".join(facts.dtypes)),
        *((name, str(value)) for name, value in sorted(lineage.artifact.facets.items())
          if name in ("context_length", "vocab_size")),
    ]  # fmt: skip
    digest = short(lineage.artifact.digest)
    return [*lines, "", *table(("", "", "from"), [(name, value, digest) for name, value in rows])]


def _use(facts: Facts) -> list[str]:
    name = named(facts.lineage.name, facts.owner)
    if facts.architecture in TRANSFORMERS:
        return [
            "## Use", "",
            f"transformers and vLLM have `{facts.architecture}` themselves: no code of this folder is run.", "",
            "```python",
            "from transformers import AutoModelForCausalLM, AutoTokenizer", "",
            f'model = AutoModelForCausalLM.from_pretrained("{name}")',
            f'tokenizer = AutoTokenizer.from_pretrained("{name}")',
            "```",
        ]  # fmt: skip
    return [
        "## Use", "",
        f"`{facts.architecture}` is this project's own architecture: neither transformers nor vLLM has it. The folder"
        " holds the class (`modeling_moxin_vlm.py`); `AutoModelForImageTextToText` runs it only when told to"
        " (`trust_remote_code=True`), which means running code of this folder. Without that, load it through the Moxin"
        " project, `stages.lib.vision.hf_checkpoint.load(folder)`. vLLM cannot serve it.",
    ]  # fmt: skip


def _data(facts: Facts) -> list[str]:
    lines = [
        "## Data", "",
        "Rows that came in and were kept, by the node that read them. Each row's count is of the artifact named last.",
        "",
    ]  # fmt: skip
    rows: list[tuple[str, ...]] = []
    for corpus in facts.corpora:
        for out in corpus.outputs:
            counts = NOT_COUNTED if out.per_license is None else _listed(out.per_license)
            rows.append(
                (f"`{corpus.node}.{out.port}`", _number(corpus.read), _number(out.rows), _listed(out.per_source),
                 counts, short(out.digest))
            )  # fmt: skip
    lines += table(("data", "read", "kept", "sources", "licences", "from"), rows, numbers=(1, 2))
    reasons = [
        (f"`{corpus.node}`", reason, f"{count:,}", short(corpus.outputs[0].digest))
        for corpus in facts.corpora if corpus.outputs for reason, count in corpus.removed.items()
    ]  # fmt: skip
    if reasons:
        lines += ["", "Left out, by reason:", "", *table(("node", "reason", "rows", "from"), reasons, numbers=(2,))]
    windows = [
        (f"`{result.node}`", source["node"], _number(source.get("documents")), _number(source.get("tokens")),
         str(source.get("epochs", "")), short(out.digest))
        for result in facts.lineage.results.values() for out in result.outputs.values() if out.type == "TokenShards"
        for source in result.stats.get("sources", ())
    ]  # fmt: skip
    if windows:
        lines += ["", "Pre-training's windows:", ""]
        head = ("node", "source", "documents", "tokens", "epochs", "from")
        lines += table(head, windows, numbers=(2, 3, 4))
    return lines


def _recipe(facts: Facts) -> list[str]:
    lines = ["## Recipe", "", "Every training step behind these weights, the first one first."]
    for result in facts.lineage.training:
        digest = short(next(out.digest for out in result.outputs.values() if out.type == "Model"))
        made_from = ", ".join(f"`{source}`" for _, source, _ in inputs(result)) or "nothing"
        if place := origin(result):
            made_from = f"outside: {place}"
        lines += ["", f"### {result.node} (stage `{result.stage}`)", "", f"From {made_from}.", ""]
        rows = [(f"`{name}`", f"`{json.dumps(value)}`", digest) for name, value in flat(result.identity)]
        rows += [
            (name.replace("_", " "), _plain(value), digest)
            for name, value in result.stats.items() if _measured(value)
        ]  # fmt: skip
        lines += table(("setting or measure", "value", "from"), rows)
        effects = from_stats(result.stats, result.node)
        if effects:
            head = ("on held-out rows", "before", "after", "difference, 95 %", "rows x trials", "from")
            lines += ["", *table(head, [_effect(one, digest) for one in effects], numbers=(1, 2, 3, 4))]
        if disagreement := DISAGREEMENTS.get(result.stage):
            lines += ["", disagreement]
    return lines


def _effect(one: Effect, digest: str) -> tuple[str, ...]:
    low, high = one.interval
    return (
        f"{one.metric} ({one.unit}, {one.better} is better)", f"{one.before:.4f}", f"{one.after:.4f}",
        f"{one.difference:+.4f} ({low:+.4f} to {high:+.4f})", f"{one.n:,} x {one.trials}", digest,
    )  # fmt: skip


def _measured(value: Any) -> bool:
    return isinstance(value, int | float | str) and not isinstance(value, bool)


def _evaluation(facts: Facts) -> list[str]:
    lines = ["## Evaluation", ""]
    evaluations = facts.evaluations
    if not evaluations.results:
        lines += ["No evaluation of this very model has run."]
    else:
        head = ("task", "metric", "score", "n", "shots", "harness", "comparable with the paper", "from")
        lines += table(head, [_score(result) for result in evaluations.results], numbers=(2, 3, 4))
        if any(result.score["in_domain"] for result in evaluations.results):
            lines += ["", "In-domain: the model was trained on the training split of the same benchmark (paper 3.3.3)."]
    if evaluations.pending:
        lines += ["", f"Not evaluated yet: {', '.join(f'`{node}`' for node in evaluations.pending)}."]
    if not facts.lineage.model.evaluations:
        lines += ["", "No node of the pipeline evaluates it for the paper's tables."]
    return lines


def _score(result: Result) -> tuple[str, ...]:
    score = result.score
    spread = "" if score["stderr"] is None else f" ± {100 * score['stderr']:.1f}"
    if result.reasons:
        compared = f"no: {'; '.join(result.reasons)}"
    else:
        compared = "yes" if result.printed is None else f"yes; the paper: {100 * result.printed:.2f}"
    domain = " (in-domain)" if score["in_domain"] else ""
    return (
        f"{result.name}{domain}", score["metric"], f"{100 * score['value']:.1f}{spread}",
        f"{score['n']:,} of {score['n_total']:,}", str(score["num_fewshot"]), result.harness, compared,
        short(result.digest),
    )  # fmt: skip


def _contamination(facts: Facts) -> list[str]:
    return ["## Contamination", "", *(facts.contamination or ["Not measured."])]


def _limits(facts: Facts) -> list[str]:
    lineage = facts.lineage
    of_stage = LIMITS.get(lineage.result.stage)
    lines = ["## Limits", "", *([f"- {of_stage}"] if of_stage else []), f"- {NOT_LIMITED}"]
    benchmarks = sorted({name for r in lineage.training for out in r.outputs.values()
                         for name in out.meta.get("benchmarks", ())})  # fmt: skip
    if benchmarks:
        lines += [
            f"- It was trained on the *training* splits of {', '.join(benchmarks)} (paper 3.3.3): its scores on these"
            " do not compare with those of a model that was not."
        ]
    if lineage.drifted:
        lines += [f"- The code of {', '.join(lineage.drifted)} has changed since: a rerun may give other weights."]
    return lines


def _cost(facts: Facts) -> list[str]:
    total = energy.total(facts.uses)
    head = ("node", "wall, s", "core-hours", "GPU-hours", "dollars", "kWh", "from")
    rows = [
        (f"`{one.node}`{' (resumed)' if one.resumed else ''}", f"{one.wall_seconds:,.1f}", f"{one.core_hours:,.3f}",
         f"{one.gpu_hours:,.2f}", f"{one.dollars:,.2f}", "not known" if one.kwh is None else f"{one.kwh:,.2f}",
         short(one.digest))
        for one in facts.uses
    ]  # fmt: skip
    everything = short(facts.lineage.artifact.digest)
    rows.append(
        ("**all**", f"{total.wall_seconds:,.1f}", f"{total.core_hours:,.3f}", f"{total.gpu_hours:,.2f}",
         f"{total.dollars:,.2f}", "not known" if total.unknown else f"{total.kwh:,.2f}", everything)
    )  # fmt: skip
    note = (
        "Recorded times of the attempts that made these artifacts; a resumed one counts from its checkpoint. Dollars"
        f" are those hours at the list prices of infra/gpu_prices.toml ({facts.gpu}), energy is GPU-hours at the"
        " card's full power as named there, an upper bound. What nobody stated the watts of is not known; cooling and"
        " idle machines are not counted."
    )
    return ["## Energy and cost", "", note, "", *table(head, rows, numbers=(1, 2, 3, 4, 5))]


def _provenance(facts: Facts) -> list[str]:
    lines = [
        "## Provenance", "",
        "Every artifact between the raw sources and these weights. The key names what was computed (stage, revision,"
        " settings, content of the inputs), the digest what came out, the source digest the code of the stage.", "",
    ]  # fmt: skip
    rows = [row for result in facts.lineage.results.values() for row in _origin(result)]
    measured = {**facts.evaluations.digests, **(facts.overlaps or {})}
    rows += [(f"`{node}`", "", f"`{digest}`", "", "", "") for node, digest in measured.items()]
    lines += table(("artifact", "stage, revision", "digest", "key", "source digest", "commit"), rows)
    if facts.files:
        lines += ["", *table(("weights", "SHA-256"), [(f"`{file}`", f"`{sha}`") for file, sha in facts.files.items()])]
    return [*lines, *(["", *facts.beside] if facts.beside else [])]


def _origin(result: StageResult) -> list[tuple[str, ...]]:
    return [
        (
            f"`{result.node}.{port}`", f"{result.stage}, {result.revision}", f"`{out.digest}`", f"`{result.key}`",
            f"`{result.code.source_digest}`", f"`{result.code.git_commit[:12]}`" if result.code.git_commit else "",
        )
        for port, out in result.outputs.items()
    ]  # fmt: skip


def table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()) -> list[str]:
    """A Markdown table. A cell cannot break out of its own."""
    rule = ["---:" if column in numbers else "---" for column in range(len(head))]
    return [_row(head), _row(rule), *(_row(row) for row in rows)]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(_cell(str(cell)) for cell in cells)} |"


def _cell(text: str) -> str:
    """Text of the data, which is nobody's of ours, as text: no column, no line and no markup comes of it."""
    text = " ".join(text.split()).replace("|", "\\|")
    if len(text) > 2 and text[0] == text[-1] == "`":
        return "`" + text[1:-1].replace("`", "'") + "`"
    return text.replace("<", "&lt;")


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items(), key=lambda row: (-row[1], row[0])))


def _number(value: int | None) -> str:
    return "not counted" if value is None else f"{value:,}"


def _plain(value: Any) -> str:
    return f"{value:,.6g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


__all__ = ["Facts", "metadata", "named", "pipeline_tag", "render", "short", "table"]
