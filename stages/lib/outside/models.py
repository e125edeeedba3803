"""A language model that others trained, in a Hugging Face folder: held against its own config.json, and its tokenizer
made what this pipeline's stages expect. Nothing of it is executed, and no tensor is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from stages.core.errors import InputError
from stages.core.files import is_inside
from stages.core.json_text import parsed_json
from stages.lib.formats import chat_template, tensor_file, vocabulary
from stages.lib.modeling.config_file import ARCHITECTURE, read_shape
from stages.lib.modeling.shape import ModelShape
from stages.lib.outside.prepared import Prepared

CONFIG, INDEX, ONE_FILE = "config.json", "model.safetensors.index.json", "model.safetensors"
BESIDE = ("generation_config.json", "README.md", "LICENSE", "LICENSE.txt", "NOTICE")
"""Taken as they are, where they are there."""
TOKENIZER = (vocabulary.FILE, "tokenizer_config.json", chat_template.FILE)
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
PART = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")


def needed(names: Iterable[str]) -> list[str]:
    """Of the names of a repository's files, those that a model is made of: not the same weights in other formats."""
    present = set(names)
    weights = {name for name in present if PART.fullmatch(name)} | ({INDEX} & present)
    return sorted(present & {CONFIG, *BESIDE, *TOKENIZER} | (weights if INDEX in present else {ONE_FILE} & present))


def prepare_model(folder: Path, target: Path) -> Prepared:
    """The model of a folder. target: where what is written anew goes. Raises InputError with what is wrong."""
    _require_file(folder, CONFIG)
    shape, vocab_size = read_shape(folder)
    tokenizer = prepare_tokenizer(folder, target)
    size = tokenizer.facets["vocab_size"]
    if size != vocab_size:
        raise InputError(
            f"wrong tokenizer: {vocabulary.FILE} has {size} entries, but the model of {CONFIG} has vocab_size"
            f" {vocab_size}: bring the tokenizer that the model was trained with"
        )
    weights = _weights(folder)
    dtype = _check(weights, shape, vocab_size)
    template = _template(folder)
    if template is not None:
        (target / chat_template.FILE).write_text(template, encoding="utf-8")
    files = [*dict.fromkeys(file for file, _ in weights.values()), *([INDEX] if (folder / INDEX).is_file() else [])]
    files += [CONFIG, *(name for name in BESIDE if (folder / name).is_file())]
    written = {chat_template.FILE: target / chat_template.FILE} if template is not None else {}
    return Prepared(
        files={name: folder / name for name in files} | tokenizer.files | written,
        facets={
            "architecture": ARCHITECTURE,
            "tokenizer_digest": tokenizer.facets["tokenizer_digest"],
            "vocab_size": vocab_size,
            "context_length": shape.max_positions,
            "dtype": dtype,
            "chat_template_digest": chat_template.NONE if template is None else chat_template.digest(template),
        },
        meta={"parameters": shape.parameters(vocab_size), "benchmarks": [], "shape": shape.model_dump()},
        license=_license(folder),
    )


def prepare_tokenizer(folder: Path, target: Path) -> Prepared:
    """The tokenizer of a folder: its pieces and ids as they are, and nothing around a text, as the stage `tokenizer`
    adopts one. Raises InputError.
    """
    _require_file(folder, vocabulary.FILE)
    tokenizer = vocabulary.read(folder / vocabulary.FILE)
    vocabulary.require_ours(tokenizer, vocabulary.FILE)
    vocabulary.save(vocabulary.plain(tokenizer), target)
    return Prepared(
        files={path.name: path for path in sorted(target.iterdir()) if path.name != chat_template.FILE},
        facets={"tokenizer_digest": vocabulary.digest(target), "vocab_size": tokenizer.get_vocab_size()},
        license=_license(folder),
    )


def expected(shape: ModelShape, vocab_size: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the weights that a config.json promises."""
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    yield "model.embed_tokens.weight", (vocab_size, shape.hidden)
    for layer in range(shape.layers):
        block = f"model.layers.{layer}."
        yield f"{block}self_attn.q_proj.weight", (queries, shape.hidden)
        yield f"{block}self_attn.k_proj.weight", (keys, shape.hidden)
        yield f"{block}self_attn.v_proj.weight", (keys, shape.hidden)
        yield f"{block}self_attn.o_proj.weight", (shape.hidden, queries)
        yield f"{block}mlp.gate_proj.weight", (shape.intermediate, shape.hidden)
        yield f"{block}mlp.up_proj.weight", (shape.intermediate, shape.hidden)
        yield f"{block}mlp.down_proj.weight", (shape.hidden, shape.intermediate)
        yield f"{block}input_layernorm.weight", (shape.hidden,)
        yield f"{block}post_attention_layernorm.weight", (shape.hidden,)
    yield "model.norm.weight", (shape.hidden,)
    yield "lm_head.weight", (vocab_size, shape.hidden)


def _weights(folder: Path) -> dict[str, tuple[str, tensor_file.Tensor]]:
    """Every tensor with its file, from the headers alone."""
    if (folder / INDEX).is_file():
        try:
            files = sorted(set(parsed_json((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise InputError(f"{INDEX} cannot be read: {error}") from error
        if odd := [name for name in files if not isinstance(name, str) or not _is_name(name)]:
            raise InputError(f"{INDEX} names {str(odd[0])[:200]!r}, which is no file of its folder")
    else:
        files = [ONE_FILE]
    tensors: dict[str, tuple[str, tensor_file.Tensor]] = {}
    for name in files:
        _require_file(folder, name)
        path = folder / name
        with open(path, "rb") as stream:
            try:
                header = tensor_file.read_header(stream, path.stat().st_size)
            except ValueError as error:
                raise InputError(f"{name} is damaged: {error}") from error
        if twice := tensors.keys() & header.tensors.keys():
            raise InputError(f"the weight {min(twice)} is in {name}, and in another file beside it")
        tensors |= {tensor: (name, where) for tensor, where in header.tensors.items()}
    return tensors


def _check(weights: Mapping[str, tuple[str, tensor_file.Tensor]], shape: ModelShape, vocab_size: int) -> str:
    """The type that all weights have. Raises InputError unless they are those that config.json promises."""
    promised: set[str] = set()
    for name, fitting in expected(shape, vocab_size):  # one by one: a config.json may promise a billion layers
        if name not in weights:
            raise InputError(f"the weights do not fit {CONFIG}: there is no {name}")
        if (shaped := weights[name][1].shape) != fitting:
            raise InputError(
                f"the weights do not fit {CONFIG}: {name} has the shape {list(shaped)}, not {list(fitting)}"
            )
        promised.add(name)
    if surplus := sorted(weights.keys() - promised):
        raise InputError(f"the weights do not fit {CONFIG}: it has no place for {surplus[0]!r}")
    types = sorted({where.dtype for _, where in weights.values()})
    if len(types) != 1 or types[0] not in DTYPES:
        raise InputError(f"the weights are of type {', '.join(types)}: one of {', '.join(DTYPES)} for all is needed")
    return DTYPES[types[0]]


def _template(folder: Path) -> str | None:
    """The chat template that a tokenizer brings, in a file of its own or within its settings."""
    if (folder / chat_template.FILE).is_file():
        try:
            return (folder / chat_template.FILE).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{chat_template.FILE} cannot be read: {error}") from error
    try:
        value: Any = parsed_json((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        template = value.get("chat_template")
        str(template).encode()  # half of a surrogate pair is no text that a file can hold
    except FileNotFoundError:
        return None
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"tokenizer_config.json cannot be read: {error}") from error
    if template is not None and not isinstance(template, str):
        raise InputError(
            "tokenizer_config.json has several chat templates: put the one to keep into chat_template.jinja"
        )
    return template


def _license(folder: Path) -> str:
    """What the front matter of a model's card says; '' where it says nothing."""
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    front = re.match(r"---\r?\n(.*?)\r?\n---", text, re.S)
    stated = re.search(r"^license:[ \t]*['\"]?([A-Za-z0-9.+-]+)['\"]?[ \t]*$", front.group(1), re.M) if front else None
    return stated.group(1) if stated else ""


def _is_name(text: str) -> bool:
    """Whether it is the name of a plain file of a folder."""
    return is_inside(text) and "/" not in text and not text.startswith(".")


def _require_file(folder: Path, name: str) -> None:
    if not (folder / name).is_file():
        raise InputError(f"there is no {name}")
