"""What commands that people give all day load."""

from __future__ import annotations

import subprocess
import sys

import pytest

from flows.settings import Settings
from tests.support.paths import ROOT


@pytest.mark.parametrize(
    "words",
    [["ls"], ["plan"], ["why", "pretrain_1"], ["experiments"], ["show", "collect"], ["lineage", "collect"], ["tables"]],
)
def test_a_command_that_reads_loads_neither_prefect_nor_what_draws(
    store_server: Settings, settings: Settings, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each would take longer than all the rest."""
    code = (
        "import sys\nfrom flows.cli import app\ntry:\n    app(sys.argv[1:], standalone_mode=False)\n"
        "except Exception as error:\n    print(error)\n"
        "print(*sorted({'matplotlib', 'numpy', 'pandas', 'prefect'} & sys.modules.keys()), sep=',', file=sys.stderr)"
    )
    for name in ("MOXIN_EMBEDDED", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MOXIN_HOME", str(settings.home))
    for name, value in settings.shared_environment().items():
        monkeypatch.setenv(name, value)
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout
    assert done.stderr.splitlines()[-1] == ""
