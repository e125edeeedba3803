"""The process beside `ingest` that takes pages apart: bounds that no page gets around."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from stages.core.errors import ConfigError
from stages.ingest import bounded_process
from stages.ingest.bounded_process import DIED, MEMORY_OUT, SLOW, BoundedProcess


@pytest.fixture
def misdeeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Functions of a module that the process beside is told of."""
    (tmp_path / "misdeeds.py").write_text(
        "import os\n"
        "def spin(data, options):\n"
        "    while data != b'good': pass\n"
        "    return 'still here', ''\n"
        "def eat(data, options): return str(len(bytearray(int(data)))), ''\n"
        "def die(data, options): os.kill(os.getpid(), int(data))\n"
        "def talk(data, options):\n"
        "    print('x' * 100_000)\n"
        "    return 'talked', ''\n"
        "def mixed(data, options): return die(b'9', {}) if data == b'die' else eat(data, {})\n"
        "def environment(data, options): return ' '.join(os.environ), ''\n"
        "def fail(data, options): raise KeyError('a bug of a library')\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")


def test_a_record_that_does_not_end_is_ended_and_the_next_one_is_read(misdeeds: None) -> None:
    with BoundedProcess(seconds=3) as beside:
        assert beside.call("misdeeds.spin", b"bad") == ("", SLOW)
        assert beside.call("misdeeds.spin", b"good") == ("still here", "")


def test_a_record_that_takes_all_memory(misdeeds: None) -> None:
    with BoundedProcess(memory=300 << 20) as beside:
        assert beside.call("misdeeds.eat", b"1000") == ("1000", "")
        assert beside.call("misdeeds.eat", str(1 << 30).encode()) == ("", MEMORY_OUT)
        assert beside.call("misdeeds.eat", b"2000") == ("2000", "")


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL])
def test_a_record_that_ends_its_reader(misdeeds: None, number: signal.Signals) -> None:
    with BoundedProcess() as beside:
        assert beside.call("misdeeds.die", str(int(number)).encode()) == ("", DIED)
        assert beside.call("misdeeds.eat", b"7") == ("7", "")


def test_several_records_in_one_message(misdeeds: None) -> None:
    """The one that goes over a bound is told from the others."""
    with BoundedProcess(seconds=1, memory=300 << 20) as beside:
        assert beside.call_many("page", []) == []
        numbers = [b"5", b"7", b"9"]
        assert beside.call_many("misdeeds.eat", [(n, {}) for n in numbers]) == [(n.decode(), "") for n in numbers]
        huge = str(1 << 30).encode()
        assert beside.call_many("misdeeds.eat", [(b"5", {}), (huge, {}), (b"9", {})]) == [
            ("5", ""),
            ("", MEMORY_OUT),
            ("9", ""),
        ]
        assert beside.call_many("misdeeds.spin", [(b"good", {}), (b"bad", {})]) == [("still here", ""), ("", SLOW)]
        assert beside.call_many("misdeeds.mixed", [(b"5", {}), (b"die", {}), (b"9", {})]) == [
            ("5", ""),
            ("", DIED),
            ("9", ""),
        ]


def test_what_a_library_prints_or_raises_is_no_answer(misdeeds: None) -> None:
    with BoundedProcess() as beside:
        assert beside.call("misdeeds.talk", b"") == ("talked", "")
        assert beside.call("misdeeds.fail", b"") == ("", "its reader failed (KeyError)")


def test_it_works_on_strangers_pages_without_our_keys(misdeeds: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "MOXIN_SOURCE_AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "secret")
    with BoundedProcess() as beside:
        names = beside.call("misdeeds.environment", b"")[0]
    assert "PYTHONPATH" in names
    left = [name for name in names.split() if any(part in name for part in ("TOKEN", "SECRET", "AWS"))]
    assert not set(left) - {"TOKENIZERS_PARALLELISM"}


def test_a_wrong_setting_is_told_as_one() -> None:
    text = " ".join(["the words and that of a page have to be enough with"] * 12).encode()
    with BoundedProcess() as beside, pytest.raises(ConfigError, match=r"language_model = /no/such\.bin: no such file"):
        beside.call("clean", text, language_model="/no/such.bin")


def test_no_process_is_left(misdeeds: None) -> None:
    with BoundedProcess() as beside:
        beside.call("misdeeds.eat", b"1")
        process = beside._process
        assert process is not None
    assert process.poll() is not None
    assert bounded_process.shared() is bounded_process.shared()
