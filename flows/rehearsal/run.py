"""Rehearse a profile: check all that can be known, then run its derived DAG as any run is run, and tell of each node.

    prefect deployment run moxin/rehearse -p profile=7b

Nothing mixes with real results: a rehearsal has a part of the store of its own (`address`), and `moxin gc` removes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, cast

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.states import Completed, Failed
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from flows import cost, form, prefect_artifacts, profiles, source_checks
from flows import flow as run_flow
from flows.empty_ledger import EmptyLedger
from flows.execute import Execution
from flows.flow import ProfileName
from flows.launch import launcher
from flows.plan import NodePlan, answered, make_plan
from flows.rehearsal import forecast, growth, measures, page, planning, report
from flows.rehearsal.derive import Machine, derive
from flows.rehearsal.findings import Findings, add_lines, node_of, reachable, sorted_out
from flows.rehearsal.forecast import units_of_inputs
from flows.rehearsal.observers import NodeLogs, Stops
from flows.rehearsal.report import REFUSED, Fault, NodeReport, RehearsalReport
from flows.rehearsal.report import State as NodeState
from flows.run_setup import launchers_of
from flows.settings import Settings
from flows.spending import Spending
from stages.core.errors import ConfigError, StageError
from stages.core.graph import Node
from stages.core.keys import source_digest
from stages.core.ledger import Ledger
from stages.core.messages import StageResult
from stages.core.records import now
from stages.core.shrinking import Level
from stages.core.store import Store
from stages.pipeline import PIPELINE


def _run_name() -> str:
    """What a rehearsal is called in Prefect's pages."""
    given = cast("dict[str, Any]", flow_run.parameters or {})
    return f"rehearsal {given.get('profile', 'tiny')} {given.get('level', 'wiring')}"


@flow(
    name="moxin",
    flow_run_name=_run_name,
    task_runner=cast(TaskRunner[PrefectFuture[Any]], ThreadPoolTaskRunner(max_workers=2 * len(PIPELINE))),
    on_cancellation=[run_flow.reap_run],
    on_crashed=[run_flow.reap_run],
    persist_result=False,
    validate_parameters=True,
)
def rehearse(
    profile: run_flow.ProfileField = ProfileName("tiny"),
    level: Annotated[
        Level,
        form.Help("wiring: every step of the way, as small as can be; shape: real widths, lengths and batches"),
    ] = "wiring",
    select: form.Select = "full",
    force: form.Force = False,
    set: form.Overrides = [],  # noqa: B006 - Prefect shows a literal default in the form; it is never changed
    processors: Annotated[bool, form.Help("No GPUs: full precision on processors stands in")] = False,
    budget: form.Budget = None,
    approve: form.Approve = False,
    restarts: form.Restarts = 0,
) -> State[Any]:
    """Run a profile's DAG small, where it is meant to run, and tell what the real one will meet."""
    log, run_id = get_run_logger(), str(flow_run.get_id())
    if restarts:
        log.warning("a rehearsal crashed: this one goes on with it by itself")
    try:
        outcome = _Rehearsing(run_id, profile.value, level, list(set), processors).run(
            select, force, Allowance(budget, approve, lost=restarts > 0)
        )
    except ConfigError as error:
        log.error("%s", error)
        state: State[Any] = Failed(name=REFUSED, message=str(error))
    except StageError as error:
        log.error("%s", error)
        state = Failed(message=str(error))
    else:
        state = Completed(message=outcome.summary()) if outcome.ok else Failed(message=outcome.summary())
    run_flow.ENDED.setdefault(run_id, state)
    return state


@dataclass(frozen=True)
class Allowance:
    """What a rehearsal may cost, as a run's: dollars, whether it may cost more, whether it goes on with a lost one."""

    budget: float | None = None
    approve: bool = False
    lost: bool = False


class _Rehearsing:
    """One rehearsal: what is known before it, its run, and what became of each node."""

    def __init__(self, run_id: str, name: str, level: Level, overrides: list[str], processors: bool) -> None:
        self.run_id = run_id
        self.level: Level = level
        self.settings = Settings.load()
        self.overrides = overrides
        self.given = profiles.load(name, PIPELINE, overrides)
        self.derived = derive(self.given, PIPELINE, level, processors=processors)
        self.store = Store(self.settings.store)
        """The profile's own: its plan is made from it, and the report goes there."""
        self.apart = replace(self.settings, store=report.address(self.settings.store, name, level))
        """Settings whose store is the rehearsal's own part."""
        self.ledger = Ledger(Store(self.apart.store))
        self.stops = Stops()
        self.logs = NodeLogs(self.settings.home / report.FOLDER / self.derived.profile.name)
        self.findings = Findings()
        self.results: dict[str, StageResult] = {}
        self.failures: dict[str, str] = {}
        self.waits: dict[str, list[str]] = {}

    def run(self, select: str, force: bool, allowance: Allowance) -> RehearsalReport:
        """Rehearse a selection; its report, which is in the store and a page by then. Raises StageError."""
        self.ledger.store.probe()
        chosen = self.derived.profile.wire(PIPELINE).select(select)
        chosen_names = [node.name for node in chosen]
        problems, opened = source_checks.check(PIPELINE, self.derived.profile, self.settings)
        findings = sorted_out(problems, self.derived, PIPELINE)
        self._plan_faults(findings, select)
        self.findings = findings.kept(chosen_names)
        for node, faults in self.findings.faults.items():
            for fault in faults:
                get_run_logger().warning("%s: %s", node, fault.line)
        blocked = {**self.findings.faults, **self.findings.out_of_reach}
        small_ones = self._only_limits()
        names, self.waits = reachable(PIPELINE, chosen, {n: why for n, why in blocked.items() if n not in small_ones})
        if names:
            self._walk(names, force, select, allowance)
        outcome = RehearsalReport(
            profile=self.given.name,
            level=self.level,
            at=now(),
            profile_digest=report.profile_digest(self.given.configs, self.given.resources),
            code={stage: source_digest(stage) for stage in sorted({node.stage for node in PIPELINE})},
            machine=Machine.here().text,
            opened=tuple(f"{one.node}: {one.what}" for one in opened if one.node in chosen_names),
            faults=tuple(self.findings.general),
            nodes=tuple(self._report_of(node) for node in chosen),
        )
        outcome = self._with_forecasts(outcome)
        report.write(self.store, outcome)
        page.write(outcome, page.place(self.settings.home, self.given.name, self.level))
        return outcome

    def _plan_faults(self, findings: Findings, select: str) -> None:
        """What the plan of the real run refuses or does not find room for."""
        try:
            plans = make_plan(PIPELINE, self.given, Ledger(self.store), select)
            estimates = cost.estimate(plans, self.given, None)
        except ConfigError as error:
            add_lines(findings, [report.first_line(str(error))], list(PIPELINE.nodes), "correct the setting")
            return
        add_lines(findings, cost.limits(plans, self.given, estimates), list(PIPELINE.nodes), LIMIT)

    def _only_limits(self) -> list[str]:
        """Nodes that can be run small all the same: what does not fit is their real size."""
        return [n for n, faults in self.findings.faults.items() if all(fault.remedy == LIMIT for fault in faults)]

    def _spending(self, plans: list[NodePlan], select: str, allowance: Allowance) -> Spending | None:
        """The count of what the rehearsal itself costs. Raises ConfigError when that would be above its budget."""
        if not allowance.budget:
            return None
        given, home = (select, *self.overrides), self.settings.home
        spent = run_flow.spending_of(
            plans, self.derived.profile, self.ledger, allowance.budget, allowance.approve, home, given
        )
        for line in spent.begin(allowance.lost):
            get_run_logger().info("%s", line)
        return spent

    def _walk(self, names: Sequence[str], force: bool, select: str, allowance: Allowance) -> None:
        """Run nodes as any run does."""
        values = self.derived.profile
        try:
            plans = make_plan(PIPELINE, values, self.ledger, names, force)
        except ConfigError as error:
            line = report.first_line(str(error))
            self.failures = {node_of(line, names) or names[0]: line}
            return
        spent = self._spending(plans, select, allowance)
        launchers = launchers_of(values, plans, self.apart)
        will_run = {plan.node.name for plan in plans if plan.will_run}
        self.stops.left = {plan.node.name for plan in plans if plan.node.checkpoints} & will_run
        execution = Execution(
            self.run_id,
            values,
            self.ledger,
            launcher(values.settings.launcher, self.apart),
            self.apart.home / report.FOLDER / values.name,  # equal keys have logs of their own
            frozenset(names),
            force,
            [*run_flow.EXTRA_OBSERVERS, self.stops, self.logs],
            answered(plans),
            launchers,
            stops=frozenset(self.stops.left),
        )
        execution.spending = spent
        self.stops.execution = execution
        run = run_flow.Run(execution, plans, prefect_artifacts.ApiCallQueue(), reports=False)
        ended = run_flow.walk(self.run_id, run)
        if ended.is_cancelled():
            run_flow.ENDED[self.run_id] = ended
            raise KeyboardInterrupt
        if spent and spent.stopped:
            self.findings.general.append(Fault(cause=spent.message()))
        self.results, self.failures = run.results, dict(run.failures)

    def _report_of(self, node: Node) -> NodeReport:
        """What became of one node."""
        name, result = node.name, self.results.get(node.name)
        state, why, remedy = self._state(node, result)
        unit, units, measured = "", 0.0, None
        read_bytes, outputs = 0.0, dict[str, dict[str, float]]()
        values = self.derived.profile
        if result is not None:
            inputs = {port: [ref.manifest for ref in refs] for port, refs in result.inputs.items()}
            read_bytes = float(sum(one.size for many in inputs.values() for one in many))
            outputs = {port: growth.held(manifest) for port, manifest in result.outputs.items()}
            unit, units, measuring = units_of_inputs(node, values.configs[name], values.resources[name], inputs)
            measured = measures.of(result, self.ledger, values.configs[name], measuring)
            units = forecast.of_rehearsal(values.configs[name], unit, units, measured)
        return NodeReport(
            node=name,
            stage=node.stage,
            state=state,
            why=why,
            remedy=remedy,
            log=str(self.logs.path(name)) if name in self.failures else "",
            faults=tuple(self.findings.faults.get(name, ())),
            stand_ins=self.derived.stand_ins.get(name, ()) if result is not None else (),
            resumed=_resumed(name, result, self.stops)[0],
            unlike=name in self.derived.unlike,
            ranks=values.resources[name].nodes * values.resources[name].ranks,
            unit=unit,
            units=units,
            read_bytes=read_bytes,
            outputs=outputs,
            asked=growth.asked_more(self.given.configs[name], values.configs[name]),
            memory_bytes=int(self.given.resources[name].memory_gib * 2**30),
            measured=measured,
        )

    def _state(self, node: Node, result: StageResult | None) -> tuple[NodeState, str, str]:
        """How it ended, why, and what to do."""
        name, findings = node.name, self.findings
        if faults := findings.faults.get(name):
            return "failed", faults[0].cause, faults[0].remedy
        if name in findings.out_of_reach:
            return "out of reach", findings.out_of_reach[name], ""
        if name in self.waits:
            return "not reached", report.lacking(self.waits[name]), ""
        if name in self.failures:
            why = report.first_line(self.failures[name].removeprefix(f"{name} failed "))
            return "failed", why, "look at its log, correct what the line names, and rehearse again"
        if result is None:
            lacking = [parent for parent in node.parents if parent not in self.results]
            return "not reached", report.lacking(lacking) if lacking else "the run ended before it", ""
        if lost := _resumed(name, result, self.stops)[1]:
            return "failed", lost, "its checkpoints cannot be relied on: look at the log of its second attempt"
        return "passed", "", ""

    def _with_forecasts(self, outcome: RehearsalReport) -> RehearsalReport:
        """With what the real run of each node takes, as far as rehearsals tell: nothing where no plan can be made."""
        reports = report.read_all(self.store, self.given.name)
        reports[outcome.level] = outcome
        try:
            plans = make_plan(PIPELINE, self.given, EmptyLedger())
            forecasts = planning.forecasts(plans, self.given, reports)
        except ConfigError:
            return outcome
        nodes = tuple(node.model_copy(update={"forecast": forecasts.get(node.node)}) for node in outcome.nodes)
        return outcome.model_copy(update={"nodes": nodes})


LIMIT = "give it a larger machine, or less work at one time"
"""What to do where a plan's sums do not fit."""


def _resumed(name: str, result: StageResult | None, stops: Stops) -> tuple[str, str]:
    """What came of the forced stop: for people, and as a failure."""
    if result is None:
        return "", ""
    step, went_on = stops.stopped.get(name), result.attempt.resumed_from
    if step is not None and went_on is None:
        return "", f"stopped after its checkpoint at step {step}, it began anew instead of going on from there"
    if went_on is not None:
        return f"stopped, and went on from step {went_on}", ""
    return ("no checkpoint came before its end: a stop was not tried" if name in stops.left else ""), ""
