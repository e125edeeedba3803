"""The files of a Hugging Face data set at a revision: found by `datasets` itself, read by the readers here.

Which files a configuration and split have is the hub's own rule (`load_dataset_builder`: the card, or the names of the
files). No code of
a data set is run, and no schema is made up: shards whose fields differ are read row by row.
"""

from __future__ import annotations

import urllib.parse
from pathlib import Path

from stages.core.errors import InfraError, InputError
from stages.lib.data.hub_requests import call_hub
from stages.lib.data.rows import addresses, kind
from stages.lib.formats.sources import Format, RawFile


def files_of(file: RawFile) -> list[RawFile]:
    """The files of a data set, in the hub's order; of the first of its mirrors that can be had. Raises InputError or
    InfraError.
    """
    errors: list[InputError | InfraError] = []
    for uri in (file.uri, *file.mirrors):
        try:
            return [
                file.model_copy(update={"uri": one, "format": _kind(uri, one), "mirrors": ()}) for one in _listed(uri)
            ]
        except (InputError, InfraError) as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    worst = next((InfraError for error in errors if isinstance(error, InfraError)), InputError)
    raise worst(f"{'; '.join(map(str, errors))} ({len(errors)} addresses were tried)")


def _listed(uri: str) -> list[str]:
    import datasets

    parts = urllib.parse.urlsplit(uri)
    query = dict(urllib.parse.parse_qsl(parts.query))
    name, _, revision = urllib.parse.unquote(f"{parts.netloc}{parts.path}").removeprefix("datasets/").partition("@")
    if parts.scheme != "hf" or not revision:
        raise InputError(
            f"{uri}: name a revision (hf://owner/name@<commit>), or the data may change under the same key"
        )
    local = name.startswith("/")
    if local and not Path(name).is_dir():
        raise InputError(f"{uri} cannot be used: there is no folder {name}")
    split = query.get("split", "train")
    builder = call_hub(
        uri,
        lambda: datasets.load_dataset_builder(
            name, query.get("config"), revision=None if local else revision, data_dir=query.get("data_dir")
        ),
    )
    splits = addresses(builder)
    if split not in splits:
        raise InputError(f"{uri} has no split '{split}', only {', '.join(splits)}")
    return splits[split]


def _kind(uri: str, file: str) -> Format:
    file_kind = kind(file)
    if file_kind is None:
        raise InputError(
            f"{uri} has files that no reader here reads: {file} (JSON lines, JSON lists, Parquet and WARC are read)"
        )
    return file_kind
