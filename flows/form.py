"""The fields of a run's form in the Prefect UI, with what each is for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, GetJsonSchemaHandler
from pydantic_core import CoreSchema

from flows.lost_runs import RESTARTS


@dataclass(frozen=True)
class Help:
    """What a field is for. Prefect gives each parameter a Field of its own, whose missing description would win over
    that of a Field here.
    """

    text: str

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(core), "description": self.text}


Select = Annotated[
    str,
    Help("Which nodes: 'full', or names and stages separated by commas; 'x+' adds what follows, '+x' what x needs"),
]
Force = Annotated[bool, Help("Run the selected nodes even if the ledger has their results")]
Overrides = Annotated[
    list[str],
    Help("Overrides on top of the profile, each 'node.field=value', for example pretrain_1.learning_rate=1e-3"),
]
Fields = Annotated[
    dict[str, dict[str, Any]],
    Help("The same for one node, field by field: what is left empty stays as the profile says"),
]
Experiment = Annotated[str, Help("A name for these settings: their results are found by it, and no other name moves")]
Why = Annotated[str, Help("What the experiment is for, kept with its name")]
PlanOnly = Annotated[bool, Help("Show the plan as a table and run nothing")]
Budget = Annotated[
    float | None,
    Field(gt=0, allow_inf_nan=False),
    Help(
        "Dollars that this run may cost: it does not begin above them, and begins no further node that would lead above"
        " them"
    ),
]
Approve = Annotated[bool, Help("Run although the budget may not do; what is spent is counted")]
Restarts = Annotated[int, Field(ge=0, le=RESTARTS), Help("How often this was started again by itself, after crashes")]
