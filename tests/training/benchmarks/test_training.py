"""The script that measures training on a GPU runs as far as a CPU can tell."""

from __future__ import annotations

import pytest
import torch

from benchmarks import training_gpu


def test_the_script_runs_on_a_cpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without torch.compile, which needs a C++ compiler there."""
    monkeypatch.setattr(torch, "compile", lambda function: function)
    line = "--device=cpu --small --precision=fp32 --vocabulary=300 --batch=2 --steps=2 --warm=1 --context 40 70"
    training_gpu.main([str(word) for word in line.split(" ")])
    printed = capsys.readouterr().out
    assert "a CPU, where these numbers mean nothing" in printed
    for name in training_gpu.contenders():
        assert printed.count(f"| {name} | ") == 2
    assert "out of memory" not in printed
