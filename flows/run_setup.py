"""What a run needs before its first node: launchers, and the execution of its plan. Knows no Prefect."""

from __future__ import annotations

from collections.abc import Sequence

from flows import profiles
from flows.event_dispatch import Observer
from flows.execute import Execution
from flows.launch import Launcher, launcher
from flows.plan import NodePlan, answered
from flows.settings import Settings
from flows.tensorboard_events import TensorBoardObserver
from stages.core.ledger import Ledger


def execution_of(
    run_id: str,
    values: profiles.Profile,
    ledger: Ledger,
    settings: Settings,
    plans: Sequence[NodePlan],
    force: bool,
    observers: Sequence[Observer],
) -> Execution:
    """What executes a plan, after stages whose control plane is dead have ended."""
    launchers = launchers_of(values, plans, settings)
    default = launcher(values.settings.launcher, settings)
    selected = frozenset(p.node.name for p in plans)
    watching = [*observers, TensorBoardObserver(settings.home / "tensorboard" / values.names)]
    execution = Execution(
        run_id, values, ledger, default, settings.home, selected, force, watching, answered(plans), launchers
    )
    execution.names = ledger.node_etags(values.names)
    return execution


def launchers_of(values: profiles.Profile, plans: Sequence[NodePlan], settings: Settings) -> dict[str, Launcher]:
    """The launcher of each planned node, one for each name; what dead control planes left to them is removed."""
    names = {plan.node.name: values.launchers[plan.node.name] for plan in plans}
    launchers = {name: launcher(name, settings) for name in sorted(set(names.values()))}
    for stage_launcher in launchers.values():
        stage_launcher.reap()
    return {node: launchers[name] for node, name in names.items()}
