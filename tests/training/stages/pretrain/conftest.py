"""Fixtures of pre-training's tests."""

from tests.support.pretraining import artifacts, single

__all__ = ["artifacts", "single"]
