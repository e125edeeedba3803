"""Experiments: a name for settings on top of a profile, with results that are found by that name alone.

    moxin run --experiment lr1e3 --set pretrain_1.learning_rate=1e-3 --why "half the batch"
    moxin show pretrain_1 --experiment lr1e3
    moxin compare tiny lr1e3

What two experiments have in common, they share: results are found by key. Only the names that say which result a node
has now (`nodes/<profile>@<experiment>/`) are an experiment's own, so that nothing moves that somebody else looks at.
"""

from flows.experiments.naming import begun, opened, split, view

__all__ = ["begun", "opened", "split", "view"]
