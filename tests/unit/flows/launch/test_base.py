"""What launchers share: the settings of the place where stages run."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel

from flows.launch.base import load_site, parse_event
from stages.core.errors import ConfigError


def test_a_line_that_a_model_wrote_is_a_line_of_the_log_however_deep_it_opens_lists() -> None:
    line = "[" * 5000
    assert parse_event(line) == {"event": "log", "level": "debug", "message": line}


@pytest.mark.parametrize(
    "line",
    [
        '{"event": "metric", "step": 1, "values": {"loss": "low"}}',
        '{"event": "metric", "step": 1, "values": {"loss": null}}',
        f'{{"event": "metric", "step": 1{"0" * 400}, "values": {{}}}}',
        '{"event": "progress", "done": 1, "total": "all"}',
    ],
)
def test_an_event_without_numbers_is_a_line_of_a_library(line: str) -> None:
    assert parse_event(line) == {"event": "log", "level": "debug", "message": line}
    for usual in ('{"event": "metric", "step": 1, "values": {"loss": NaN}}', '{"event": "progress", "done": 1.5}'):
        assert parse_event(usual)["event"] != "log"


class Site(BaseModel):
    partition: str


def test_a_site_that_cannot_be_read_is_one_line_with_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    latin = tmp_path / "latin.toml"
    latin.write_bytes('partition = "gr\xfcn"'.encode("latin-1"))
    lock = tmp_path / "a-file" / "site.toml"
    lock.parent.write_text("")
    for path, reason in ((tmp_path, "Is a directory"), (latin, "it is not UTF-8"), (lock, "Not a directory")):
        monkeypatch.setenv("MOXIN_X_SITE", str(path))
        with pytest.raises(ConfigError) as caught:
            load_site(Site, "MOXIN_X_SITE", tmp_path / "default.toml", "cluster")
        message = str(caught.value)
        assert f"{path} cannot be read ({reason}): MOXIN_X_SITE must name" in message
        assert "\n" not in message
