"""Lists of banned addresses: each rule on addresses made for it, as DCLM's filter decides."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from stages.core.errors import ConfigError, InputError
from stages.ingest import page_filters
from stages.ingest.records import Record
from stages.ingest.spec import IngestConfig
from stages.ingest.url_filter import banned
from tests.support.raw_pages import PROSE as PAGE

LISTS = {
    "domains": "bad.example\nworse.example\n",
    "strict": "evilword\n",
    "hard": "casino\n",
    "soft": "webcam\nescort\n",
}


@pytest.fixture
def lists(tmp_path: Path) -> dict[str, str]:
    for name, text in LISTS.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    return {name: str(tmp_path / name) for name in LISTS}


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("https://bad.example/page", "banned domain"),
        ("https://WWW.Bad.Example/page", "banned domain"),
        ("https://notbad.example/page", None),
        ("https://example.org/bad.example", None),
        ("https://e-vil.word.example/", "banned word in the address, anywhere"),
        ("https://example.org/xevilwordx", "banned word in the address, anywhere"),
        ("https://example.org/casino-royale", "banned word in the address"),
        ("https://example.org/casinos", None),
        ("https://example.org/webcam/webcam", None),
        ("https://escort.example.org/webcam", "two suspicious words in the address"),
        ("", None),
        ("http://[broken", None),
    ],
)
def test_each_list_has_its_rule(lists: dict[str, str], url: str, reason: str | None) -> None:
    assert banned(lists, {}, "ingest_web.banned").reason(url) == reason


def test_the_rules_for_pages_ask_the_lists_first(lists: dict[str, str]) -> None:
    config = IngestConfig(heuristics="refinedweb", language="none", banned=lists)
    assert page_filters.apply(Record(PAGE, "https://bad.example/"), config) == (PAGE, "banned domain")
    assert page_filters.apply(Record(PAGE, "https://example.org/"), config) == (PAGE, "")


def test_a_list_that_is_missing_or_another_is_named(lists: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ingest_web\.banned\.hard = .*none: no such file"):
        banned({"hard": str(tmp_path / "none")}, {}, "ingest_web.banned")
    with pytest.raises(
        InputError, match=r"ingest_web\.banned\.hard = .*: its SHA-256 is " + hashlib.sha256(b"casino\n").hexdigest()
    ):
        banned({"hard": lists["hard"]}, {"hard": "a" * 64}, "ingest_web.banned")
    with pytest.raises(ValueError, match="there is no list 'harsh'; there are: domains, strict, hard, soft"):
        IngestConfig(banned={"harsh": "x"})


def test_a_language_filter_is_never_skipped_without_a_word(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=(
            r"ingest_web\.language_model is unset: name fastText's lid\.176\.bin, or set ingest_web\.language = 'none'"
        ),
    ):
        page_filters.check("ingest_web", IngestConfig(heuristics="refinedweb"))
    model = tmp_path / "lid.bin"
    model.write_bytes(b"x")
    with pytest.raises(InputError, match="its SHA-256 is"):
        page_filters.check(
            "ingest_web",
            IngestConfig(heuristics="refinedweb", language_model=str(model), language_model_sha256="a" * 64),
        )
