"""Checking answers to mathematical problems, safely: what a model writes can neither run, nor hang, nor exhaust the
machine.

from stages.lib.verifier import Verifier, in_format
"""

from stages.lib.verifier.answer_extraction import after_thought, in_format, last_boxed
from stages.lib.verifier.verifier_pool import Limits, Outcome, Rule, Verdict, Verifier

__all__ = ["Limits", "Outcome", "Rule", "Verdict", "Verifier", "after_thought", "in_format", "last_boxed"]
