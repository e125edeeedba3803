"""Checking answers to mathematical problems, safely: what a model writes can neither run, nor hang, nor exhaust the machine.

    from stages.verifier import Verifier, in_format
"""

from stages.verifier.extract import after_thought, in_format, last_boxed
from stages.verifier.pool import Limits, Outcome, Rule, Verdict, Verifier

__all__ = ["Limits", "Outcome", "Rule", "Verdict", "Verifier", "after_thought", "in_format", "last_boxed"]
