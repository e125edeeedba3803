"""The fields of a run's form in the Prefect UI, with what each is for."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from flows.lost_runs import RESTARTS

Select = Annotated[
    str,
    Field(
        description=(
            "Which nodes: 'full', or names and stages separated by commas; 'x+' adds what follows, '+x' what x needs"
        )
    ),
]
Force = Annotated[bool, Field(description="Run the selected nodes even if the ledger has their results")]
Overrides = Annotated[
    list[str],
    Field(
        description=(
            "Overrides on top of the profile, each 'node.field=value', for example pretrain_1.learning_rate=1e-3"
        )
    ),
]
Experiment = Annotated[
    str, Field(description="A name for these settings: their results are found by it, and no other name moves")
]
Why = Annotated[str, Field(description="What the experiment is for, kept with its name")]
PlanOnly = Annotated[bool, Field(description="Show the plan as a table and run nothing")]
Budget = Annotated[
    float | None,
    Field(
        gt=0,
        allow_inf_nan=False,
        description=(
            "Dollars that this run may cost: it does not begin above them, and begins no further node that would lead"
            " above them"
        ),
    ),
]
Approve = Annotated[bool, Field(description="Run although the budget may not do; what is spent is counted")]
Restarts = Annotated[
    int, Field(ge=0, le=RESTARTS, description="How often this was started again by itself, after crashes")
]
