"""What is read from the harness's samples: rows to keep, requests cut at their beginning, right answers, programs."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from lm_eval.models.utils import normalize_gen_kwargs

from stages.core.errors import ConfigError
from stages.lib.evaluation.suite_file import TaskEntry
from stages.lib.formats.completions import Candidate
from stages.lib.formats.reports import sample_value


def sample(task: str, row: dict[str, Any]) -> dict[str, Any]:
    """What is kept of one document: the question, what the model was given, how it scored each answer or what
    it wrote (`scores`: after the filter; `answers`: as written).
    """
    requests = _requests(row)
    given = [[str(part) for part in request] for request in requests]
    scores = [_response(response) for response in row["filtered_resps"]]
    kept = {name: row[name] for name in row.get("metrics", ()) if isinstance(row.get(name), int | float)}
    chosen = {"filter": row["filter"]} if row.get("filter", "none") != "none" else {}
    written = {"answers": [list(texts) for texts in row["resps"]]} if _writes(requests) else {}
    doc = {"doc_id": row["doc_id"], "doc": row["doc"], "target": row["target"]}
    return {"task": task, **doc, "requests": given, "scores": scores, **written, **chosen, **kept}


def _writes(requests: list[Any]) -> bool:
    return any(len(request) > 1 and isinstance(request[1], dict) for request in requests)


def _response(response: Any) -> Any:
    """A response as JSON: (log-likelihood, whether greedy decoding says it), one number, a text, or several."""
    if isinstance(response, tuple | list) and len(response) == 2 and isinstance(response[0], int | float):
        return [float(response[0]), bool(response[1])]
    if isinstance(response, tuple | list):
        return [str(part) for part in response]
    return float(response) if isinstance(response, int | float) else str(response)


def _requests(row: dict[str, Any]) -> list[Any]:
    """The (context, continuation) or (context, settings of generation) of a logged sample, whichever way the harness
    lays them out.
    """
    arguments = row["arguments"]
    if isinstance(arguments, dict):
        ordered = sorted(arguments.items(), key=lambda item: int(item[0].rpartition("_")[2]))
        return [[value[name] for name in sorted(value)] for _, value in ordered]
    return [list(request) for request in arguments]


def truncated(lm: Any, rows: Iterable[dict[str, Any]]) -> int:
    """Requests that do not fit: the harness then drops tokens from their beginning. A text that is written needs the
    room of its longest answer, too.
    """
    count, seen = 0, set()
    for row in rows:
        if row["doc_id"] in seen:  # once more for another filter
            continue
        seen.add(row["doc_id"])
        count += sum(_cut(lm, request) for request in _requests(row))
    return count


def _cut(lm: Any, request: list[Any]) -> bool:
    context, rest = request[0], request[1] if len(request) > 1 else ""
    if isinstance(rest, dict):
        return len(lm.tok_encode(context)) + longest_answer(rest, lm.max_gen_toks) > lm.max_length
    return len(lm.tok_encode(context + str(rest))) > lm.max_length + 1


def longest_answer(generation: Mapping[str, Any], default: int) -> int:
    """Tokens that an answer may have at most."""
    return int(normalize_gen_kwargs(dict(generation), default).get("max_gen_toks", default))


# --- several answers ------------------------------------------------------------------------------------------------


def passed(task: Any, chosen: str, metric: str) -> list[tuple[int, int]]:
    """(answers, right answers) of each document, each answer filtered and scored by the task as if it were the only
    one. Raises ConfigError for a metric that does not say right or wrong.
    """
    ensemble = next(f for f in task._filters if f.name == chosen)
    by_doc: dict[int, list[Any]] = defaultdict(list)
    for instance in task.instances:
        by_doc[instance.doc_id].append(instance)
    right: dict[int, int] = defaultdict(int)
    kept = [(i, i.resps, dict(i.filtered_resps)) for i in task.instances]
    repeats = min(len(responses) for _, responses, _ in kept)
    try:
        for number in range(repeats):
            for instance, responses, _ in kept:
                instance.resps = [responses[number]]
            ensemble.apply(task.instances)
            for doc_id, instances in by_doc.items():
                answers = [instance.filtered_resps[chosen] for instance in instances]
                value = task.process_results(instances[0].doc, answers).get(metric)
                if value not in (0, 1):
                    raise ConfigError(
                        f"metric {metric} of task {task.task_name} is no right or wrong: pass@k cannot be told from it"
                    )
                right[doc_id] += int(value)
    finally:
        for instance, responses, filtered in kept:
            instance.resps, instance.filtered_resps = responses, filtered
    return [(repeats, right[doc_id]) for doc_id in sorted(by_doc)]


# --- programs -------------------------------------------------------------------------------------------------------


def candidates(entry: TaskEntry, rows: Iterable[dict[str, Any]]) -> Iterator[Candidate]:
    """The programs of each document, after the entry's filter (unset: the first), in the data set's order."""
    chosen = entry.filter
    for row in rows:
        chosen = chosen or row["filter"]
        if row["filter"] == chosen:
            (programs,) = row["filtered_resps"]
            name = row["doc"].get("task_id", row["doc_id"])
            texts = [programs] if isinstance(programs, str) else programs
            yield Candidate(
                doc=row["doc_id"],
                id=str(name),
                programs=tuple(texts),
                test=str(row["target"]),
                prompt=str(_requests(row)[0][0]),
                row=json.loads(json.dumps(row["doc"], default=sample_value)),
            )
