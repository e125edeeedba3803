"""The bill of materials, the audit, the list of licenses: by the packages' own words, and silence is no clean bill."""

from __future__ import annotations

import json
from collections.abc import Iterator
from email.message import Message
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from containers import sbom


def metadata(*rows: tuple[str, str]) -> Any:
    message = Message()
    for name, value in rows:
        message[name] = value
    return message


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([("License-Expression", "MIT AND PSF-2.0"), ("Classifier", "License :: OSI Approved :: BSD License")],
         "MIT AND PSF-2.0"),
        ([("Classifier", "License :: OSI Approved :: Apache Software License"), ("License", "whatever")], "Apache-2.0"),
        ([("Classifier", "License :: OSI Approved"), ("License", "3-Clause BSD License")], "BSD-3-Clause"),
        ([("Classifier", "License :: OSI Approved :: MIT License"),
          ("Classifier", "License :: OSI Approved :: Apache Software License")], "Apache-2.0 OR MIT"),
        ([("License", "Beerware")], "Beerware"),
        ([("License", "Copyright (c) somebody\n\nPermission is hereby granted")], "not stated"),
        ([("License", "UNKNOWN"), ("Classifier", "Topic :: Internet")], "not stated"),
    ],
)  # fmt: skip
def test_a_license_is_what_the_package_states(rows: list[tuple[str, str]], said: str) -> None:
    assert sbom.license_of(metadata(*rows)) == said


def test_a_bill_gets_the_licenses_of_the_same_versions_alone() -> None:
    bill = {"components": [{"name": "A_b", "version": "1.0"}, {"name": "c", "version": "2.0"}, {"name": "d"}]}
    known = {
        "a-b": SimpleNamespace(version="1.0+cpu", metadata=metadata(("License-Expression", "MIT OR Apache-2.0"))),
        "c": SimpleNamespace(version="2.1", metadata=metadata(("License-Expression", "MIT"))),
    }
    done = sbom.with_licenses(bill, cast("Any", known))
    assert [one.get("licenses") for one in done["components"]] == [[{"expression": "MIT OR Apache-2.0"}], None, None]


def test_every_lock_has_a_name_of_its_own() -> None:
    names = [sbom.named(lock) for lock in sbom.locks()]
    assert {"embedded", "embedded-torch", "data", "verl", "cuda"} <= set(names)
    assert len(names) == len(set(names))


def test_the_page_says_again_what_was_written() -> None:
    table = {"MIT": [f"package-{n}" for n in range(60)], "Apache-2.0 WITH LLVM-exception OR (MIT AND Zlib)": ["one"]}
    text = sbom.license_rows(table)
    assert max(map(len, text.splitlines())) <= 140
    stated = sbom.stated_licenses(f"head\n{sbom.BEGIN}\n{text}\n{sbom.END}\ntail")
    assert stated == {name: license for license, names in table.items() for name in names}


@pytest.fixture
def one_lock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[dict[str, Any] | str]]:
    """A lock of two packages, and what the databases answer, in turn: rows, or the last line of an error."""
    (tmp_path / "requirements.lock").write_text("a==1.0 \\\n    --hash=sha256:0\nb==2.0 ; python_version < '3.13'\n")
    answers: list[dict[str, Any] | str] = []
    asked: list[str] = []

    def answer(package: str, *command: str) -> Any:
        asked.append(Path(command[-1]).read_text())
        given = answers.pop(0)
        if isinstance(given, str):
            return SimpleNamespace(returncode=1, stdout="", stderr=f"Traceback\n{given}")
        return SimpleNamespace(returncode=0, stdout=json.dumps(given), stderr="")

    monkeypatch.setattr(sbom, "locks", lambda: [tmp_path / "requirements.lock"])
    monkeypatch.setattr(sbom, "run_apart", answer)
    yield answers
    assert set(asked) == {"a==1.0\nb==2.0\n"}


def rows(**vulnerable: str) -> dict[str, Any]:
    """pip-audit's answer, its package b with a weakness where one is given."""
    vulns = [{"id": id, "fix_versions": ["9"]} for id in vulnerable.values()]
    return {
        "dependencies": [{"name": "a", "version": "1.0", "vulns": []}, {"name": "b", "version": "2.0", "vulns": vulns}]
    }


def test_what_is_known_is_told(one_lock: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    one_lock += [rows()]
    assert sbom.audit() == 0
    assert "2 packages, 0 known weaknesses" in capsys.readouterr().out
    one_lock += [rows(b="CVE-1")]
    assert sbom.audit() == 1
    assert "b 2.0: CVE-1, mended in 9" in capsys.readouterr().out


def test_no_answer_is_not_taken_for_a_clean_bill(one_lock: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    skipped = [{"name": name, "skip_reason": "Dependency not found on PyPI"} for name in "ab"]
    one_lock += [{"dependencies": skipped}, "could not resolve host"]
    assert sbom.audit() == 3
    said = capsys.readouterr().out
    assert "not reached: the database of pypi: Dependency not found on PyPI" in said
    assert "not reached: the database of osv: could not resolve host" in said
    assert "nothing was audited" in said


def test_the_second_database_is_asked_where_the_first_says_nothing(
    one_lock: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    one_lock += ["HTTP 503", rows(b="CVE-2")]
    assert sbom.audit() == 1
    assert "CVE-2" in capsys.readouterr().out
