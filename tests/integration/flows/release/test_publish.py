"""A push to a hub: what would be sent, what is sent, and a hub that fails in the middle."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi
from safetensors.numpy import save

from flows import family
from flows.release import folder, lineage, publish, weights
from stages.core.errors import ConfigError, InfraError
from stages.core.ledger import Ledger
from tests.support.family_ledger import TENSORS, publish_family
from tests.support.model_hub import CUT, ModelHub

CARD = "---\nlicense: apache-2.0\n---\n# A model\n"
REPOSITORY = "us/Moxin-132-Original"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelHub]:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # between its own retries
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)  # read once, when it is imported
    with ModelHub() as one:
        yield one
        assert one.strange == []


@pytest.fixture
def released(ledger: Ledger, tmp_path: Path) -> Path:
    """A release in two shards."""
    publish_family(ledger)
    model = lineage.trace(ledger, "tiny", family.load()["pretrain_2"], ledger.nodes("tiny"))
    return folder.write(tmp_path, model, ledger.store, lambda f, w: {"README.md": CARD}, max_shard_bytes=300).path


def api(hub: ModelHub, token: str = ModelHub.TOKEN) -> Any:
    return HfApi(endpoint=hub.endpoint, token=token)


def contents(path: Path) -> dict[str, bytes]:
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_a_dry_run_sends_nothing_and_says_what_it_would(hub: ModelHub, released: Path) -> None:
    planned = publish.plan(released, REPOSITORY, api(hub))
    assert dict(planned.send) == {name: len(data) for name, data in contents(released).items()}
    assert (planned.exists, planned.commit, planned.remove) == (False, None, ())
    assert planned.size == sum(map(len, contents(released).values()))
    assert set(hub.asked) == {"info"}
    assert hub.repositories == {}


def test_a_push_is_one_commit_with_every_file(hub: ModelHub, released: Path) -> None:
    done = publish.push(released, REPOSITORY, api(hub), private=True)
    assert hub.repositories == {REPOSITORY: contents(released)}
    assert hub.private == {REPOSITORY: True}
    assert hub.commits == [publish.MESSAGE]
    assert len(hub.puts) == len(list(released.glob("*.safetensors"))) == 2
    assert done.commit is not None
    assert json.loads(json.dumps(done.row()))["bytes"] == done.size


def test_weights_of_an_earlier_release_go_and_what_others_put_there_stays(hub: ModelHub, released: Path) -> None:
    publish.push(released, REPOSITORY, api(hub))
    hub.repositories[REPOSITORY]["assets/picture.png"] = b"theirs"
    for path in [*released.glob("*.safetensors"), released / weights.INDEX]:
        path.unlink()
    (released / "model.safetensors").write_bytes(save(TENSORS))
    relist(released)
    assert publish.plan(released, REPOSITORY, api(hub)).remove == (
        "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", weights.INDEX,
    )  # fmt: skip
    publish.push(released, REPOSITORY, api(hub))
    assert hub.repositories[REPOSITORY] == contents(released) | {"assets/picture.png": b"theirs"}


def relist(released: Path) -> None:
    manifest = json.loads((released / folder.MANIFEST).read_text())
    manifest["files"] = {
        path.name: folder.file_sha256(path) for path in released.iterdir() if path.name != folder.MANIFEST
    }
    (released / folder.MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("what", "statuses"), [("put", [403]), ("put", [400] * 9), ("commit", [500]), ("commit", [CUT])]
)
def test_a_push_that_broke_goes_on_where_it_was(hub: ModelHub, released: Path, what: str, statuses: list[int]) -> None:
    hub.fail(what, *statuses)
    with pytest.raises((InfraError, ConfigError)) as caught:
        publish.push(released, REPOSITORY, api(hub))
    assert "\n" not in str(caught.value)
    assert hub.commits == []
    sent = list(hub.puts)
    hub._failures.clear()
    publish.push(released, REPOSITORY, api(hub))
    assert hub.repositories[REPOSITORY] == contents(released)
    assert len(hub.puts) == len(set(hub.puts)) == 2, "what had arrived was sent again"
    assert sent == hub.puts[: len(sent)]


def test_a_hub_that_cannot_be_reached_is_one_line_and_no_verdict_on_the_release(released: Path) -> None:
    with pytest.raises(InfraError, match=r"the hub cannot be reached .*; nothing was sent"):
        publish.plan(released, REPOSITORY, HfApi(endpoint="http://127.0.0.1:9", token="x"))


def test_a_dry_run_needs_no_hub(released: Path) -> None:
    shown = publish.preview(released, REPOSITORY, HfApi(endpoint="http://127.0.0.1:9", token="x"))
    assert shown.exists is None
    assert dict(shown.send) == {name: len(data) for name, data in contents(released).items()}


def test_no_token_is_shown_or_logged(
    hub: ModelHub, released: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises(ConfigError, match=r"the hub refuses \(status 401\): set HF_TOKEN to a token") as caught:
        publish.push(released, REPOSITORY, api(hub, "hf_wrong_secret"))
    hub.fail("commit", 400)  # this hub's refusal repeats the request's header
    with pytest.raises(ConfigError, match="the hub does not take it") as second:
        publish.push(released, REPOSITORY, api(hub))
    publish.push(released, REPOSITORY, api(hub))
    printed = capfd.readouterr()
    for text in (str(caught.value), str(second.value), caplog.text, printed.out, printed.err):
        assert "hf_wrong_secret" not in text
        assert hub.TOKEN not in text


def test_a_folder_that_is_no_release_or_was_changed_is_not_sent(hub: ModelHub, released: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is no release: its release\.json cannot be read"):
        publish.push(tmp_path, REPOSITORY, api(hub))
    (released / "secrets.env").write_text("x")
    with pytest.raises(ConfigError, match=r"secrets\.env is no part of the release"):
        publish.push(released, REPOSITORY, api(hub))
    (released / "secrets.env").unlink()
    (released / "README.md").write_text("other")
    with pytest.raises(ConfigError, match=r"README\.md is not as it was released: run 'moxin release' again"):
        publish.push(released, REPOSITORY, api(hub))
    assert hub.repositories == {}


def test_a_card_that_the_hub_does_not_take_is_one_line(hub: ModelHub, released: Path) -> None:
    (released / "README.md").write_text("---\nlicense: 3\n---\n")
    relist(released)
    with pytest.raises(ConfigError, match=r'Invalid metadata in README\.md.*"license" must be a string') as caught:
        publish.push(released, REPOSITORY, api(hub))
    assert "\n" not in str(caught.value)
    assert hub.puts == []


@pytest.mark.parametrize("owner", ["", "a/b", "-a", "a b", "a--b", "a" * 97, "https://huggingface.co"])
def test_an_owner_that_can_be_none_is_refused(owner: str) -> None:
    with pytest.raises(ConfigError, match="no name of a user or an organization"):
        publish.check_owner(owner)
    publish.check_owner("moxin-org")
