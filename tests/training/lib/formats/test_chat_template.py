"""The chat template: Tülu's text to the byte, and the right labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from stages.lib.finetuning import model_loading
from stages.lib.finetuning.encoding import encode, encode_conversations, encode_prompts, tidy
from stages.lib.formats import chat_template
from stages.lib.formats.examples import assistant, user
from tests.support.examples import max_examples
from tests.support.tuning import tokenizer_folder

# open-instruct, dataset_transformation.py, CHAT_TEMPLATES["tulu"]
TULU_UPSTREAM = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}"
    "{{ '<|system|>\n' + message['content'] + '\n' }}"
    "{% elif message['role'] == 'user' %}"
    "{{ '<|user|>\n' + message['content'] + '\n' }}"
    "{% elif message['role'] == 'assistant' %}"
    "{% if not loop.last %}"
    "{{ '<|assistant|>\n'  + message['content'] + eos_token + '\n' }}"
    "{% else %}"
    "{{ '<|assistant|>\n'  + message['content'] + eos_token }}"
    "{% endif %}"
    "{% endif %}"
    "{% if loop.last and add_generation_prompt %}"
    "{{ '<|assistant|>\n' }}"
    "{% endif %}"
    "{% endfor %}"
)
CHAT = [{"role": "system", "content": "be kind"}, user("hi\n"), assistant("ho"), user("a </ b"), assistant("x\ny")]
turns = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": st.text(max_size=20)}),
    min_size=1,
    max_size=6,
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return model_loading.load_tokenizer(tokenizer_folder(tmp_path_factory.mktemp("tokenizer")), chat_template.TULU)


def render(template: str, messages: Any, prompt: bool) -> str:
    return render_jinja_template([messages], chat_template=template, add_generation_prompt=prompt, eos_token="</s>")[0][
        0
    ]


@given(turns, st.booleans())
@max_examples(80)
def test_the_text_is_tulus_to_the_byte(messages: Any, prompt: bool) -> None:
    assert render(chat_template.TULU, messages, prompt) == render(TULU_UPSTREAM, messages, prompt)


def test_the_text_of_a_chat() -> None:
    assert (
        render(chat_template.TULU, CHAT, False)
        == "<|system|>\nbe kind\n<|user|>\nhi\n\n<|assistant|>\nho</s>\n<|user|>\na </ b\n<|assistant|>\nx\ny</s>"
    )
    assert render(chat_template.TULU, CHAT[:2], True).endswith("hi\n\n<|assistant|>\n")


def test_labels_are_what_the_assistant_writes_and_its_end(tokenizer: Any) -> None:
    ((ids, mask),) = encode(tokenizer, [CHAT])
    assert ids[0] != tokenizer.bos_token_id
    spans, inside = [], False
    for id_, label in zip(ids, mask, strict=True):
        if label and not inside:
            spans.append([])
        inside = bool(label)
        if label:
            spans[-1].append(id_)
    assert [tokenizer.decode(s) for s in spans] == ["ho</s>", "x\ny</s>"]
    assert [s[-1] for s in spans] == [tokenizer.eos_token_id] * 2
    first_end = ids.index(tokenizer.eos_token_id)
    assert mask[first_end : first_end + 4] == [1, 0, 0, 0]  # the newline between two turns is in no label


def test_a_prompt_is_the_beginning_of_its_conversation(tokenizer: Any) -> None:
    ((ids, mask),) = encode(tokenizer, [CHAT])
    (prompt,) = encode_prompts(tokenizer, [CHAT[:-1]])
    assert ids[: len(prompt)] == prompt
    assert mask[len(prompt) :] == [1] * (len(ids) - len(prompt))


def test_rows_that_cannot_be_learned_from_are_counted_by_reason(tokenizer: Any) -> None:
    good, long_prompt = [user("hi"), assistant("ho")], [user("x" * 90), assistant("ho")]
    found = encode_conversations(
        tokenizer,
        [good, long_prompt, [user("hi")], [user("hi</s>"), assistant("ho")], [user("hi"), assistant("y" * 90)]],
        60,
    )
    assert dict(found.removed) == {
        "no answer within max_length": 1,
        "no assistant turn": 1,
        "spells a control token": 1,
    }
    assert (found.seen, len(found.rows), found.truncated) == (5, 2, 1)
    assert [len(r["input_ids"]) <= 60 for r in found.rows] == [True, True]
    assert encode_conversations(tokenizer, [good] * 3, 60, max_rows=2).seen == 2


def test_the_template_survives_a_folder(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    assert (tmp_path / chat_template.FILE).read_text() == chat_template.TULU
    assert AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(CHAT, tokenize=False) == render(
        TULU_UPSTREAM, CHAT, False
    )


def merging(folder: Path) -> Any:
    """A tokenizer that has a piece for two line feeds, as those that the pipeline trains."""
    made = Tokenizer.from_file(str(tokenizer_folder(folder) / "tokenizer.json"))
    value = json.loads(made.to_str())
    value["model"]["vocab"]["\n\n"] = len(value["model"]["vocab"]) + 64
    value["model"]["merges"].append(["\n", "\n"])
    Tokenizer.from_str(json.dumps(value)).save(str(folder / "tokenizer.json"))
    return model_loading.load_tokenizer(folder, chat_template.TULU)


def test_a_prompt_is_a_prefix_of_what_is_learned_even_when_an_answer_begins_with_line_feeds(tmp_path: Path) -> None:
    tokenizer = merging(tmp_path)
    chat = [user("hi"), assistant("\n\nho\n\nho"), user("\nwhat"), assistant("\r\n\nit is")]
    two = tokenizer("\n\n", add_special_tokens=False)["input_ids"]
    found = encode_conversations(tokenizer, [chat, [user("a"), assistant("b")]], 400)
    assert found.tidied == 1
    ids, labels = found.rows[0]["input_ids"], found.rows[0]["labels"]
    for turns in (1, 3):
        (prompt,) = encode_prompts(tokenizer, [tidy(chat)[:turns]])
        assert ids[: len(prompt)] == prompt
        assert labels[len(prompt) - 1] == -100
        assert labels[len(prompt)] == ids[len(prompt)]
    assert two[-1] in labels  # line feeds inside an answer are learned as they are
    assert tidy(chat)[2]["content"] == "\nwhat"  # a person's turn is left alone
    assert found.stats()["leading_line_feeds"] == 1


def test_an_answer_that_closes_its_thought_twice_is_counted_and_not_learned(tokenizer: Any) -> None:
    rows = [[user("a"), assistant(text)] for text in ("<think>x</think> y", "<think>x</think> y </think> z")]
    found = encode_conversations(tokenizer, rows, 400)
    assert found.kept == [0]
    assert found.removed == {"closes a thought twice": 1}
