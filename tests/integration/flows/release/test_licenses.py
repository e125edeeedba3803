"""The licence's full text, and whose data went in."""

from __future__ import annotations

import pytest

from flows.release import licenses
from flows.release.corpora import NOT_COUNTED, UNNAMED, describe
from stages.core.errors import ConfigError
from stages.core.ledger import Ledger
from tests.support.family_ledger import publish_family


def test_the_whole_text_of_the_licence() -> None:
    text = licenses.text("Apache-2.0")
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_a_licence_without_a_text_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"license = 'MIT': the project has the text of Apache-2\.0 alone"):
        licenses.text("MIT")


def test_notices_have_every_licence_with_its_rows_and_digest(ledger: Ledger) -> None:
    made = publish_family(ledger)
    corpora = [describe(made[node]) for node in ("ingest_text", "dedup_text", "instructions_tulu")]
    text = licenses.notices("M", "Apache-2.0", corpora, [("tokenizer", "a tokenizer", "e" * 64)])
    assert f"| `ingest_text.documents` | 90 | MIT 50, Apache-2.0 30, {UNNAMED} 10 |" in text
    assert f"| `dedup_text.documents` | 70 | {NOT_COUNTED} |" in text
    assert "ODC-BY-1.0 40" in text
    assert made["instructions_tulu"].outputs["train"].digest in text
    assert "| `tokenizer` | a tokenizer | `" + "e" * 64 in text
