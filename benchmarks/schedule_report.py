"""Makes the tables of `benchmarks/schedules.py` from its record."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

from benchmarks.balance_plans import FULL, Plan
from benchmarks.balance_record import TEST, Record
from benchmarks.balance_report import NUM_SEEDS, Mean, Results, Setting, spell_rate, spell_setting
from benchmarks.schedule_plans import CONTROL, CONTROLS, FIXED, PLANS, SCHEDULES, SHUFFLED
from benchmarks.whole_runs import table_head, table_row

READING = """\
Accuracy is the mean over seeds in percent, with its standard error. Differences are paired by seed, in points, over the
seeds that both plans have, with 95 % intervals (Student's t). They cover the seeds, not the choice of the test rows or
of the learning rate. Depth is the mean over the steps of all seeds. The fixed plan is the one whose depth is nearest to
it.
"""


def report(record: Record, *, tuning_seed: int) -> str:
    """Returns the tables.

    Args:
        record: What has been run.
        tuning_seed: What the learning rates were tuned with.
    """
    results, accuracies, times = Results(record, tuning_seed), record.accuracies, record.times
    settings = dict.fromkeys((run.rows, run.epochs) for run in accuracies)
    lines = ["## Accuracy", "", READING] if settings else []
    for setting in settings:
        lines += accuracy_lines(record, results, setting)
    for timed in dict.fromkeys((each.rows, each.epochs) for each in times):
        lines += time_lines(record, timed)
    lines += [f"- {kind}: {about}." for kind in ("run", "time") for about in record.about(kind)]
    return "\n".join(lines)


def accuracy_lines(record: Record, results: Results, setting: Setting) -> list[str]:
    """Returns the table for one setting, with the plans that have all seeds."""
    complete = [plan for plan in PLANS.values() if results.is_complete(plan, setting)]
    head = ["plan", "learning rate", "seeds", "accuracy, %", "depth", "minus full", "minus fixed", "minus shuffled"]
    lines = [f"### {spell_setting(setting)}", "", *table_head(head)]
    for plan in complete:
        mean, depth = results.mean(plan, setting), depth_of(record, results, plan, setting)
        cells = [plan.about, spell_rate(plan, results.rate(plan, setting)), len(results.by_seed(plan, setting))]
        cells += [f"{mean.value:.1f} ± {mean.error:.1f}", "" if depth is None else f"{depth:.2f}"]
        compared = (FULL if plan != FULL else None, nearest(plan, depth), shuffled(plan))
        for other in compared:
            has = other is not None and other in complete
            cells.append(spell_difference(results.difference(plan, other, setting), other) if has and other else "")
        lines.append(table_row(cells))
    counts = {plan: len(results.by_seed(plan, setting)) for plan in PLANS.values() if plan not in complete}
    missing = ", ".join(f"{plan.name} ({count})" for plan, count in counts.items())
    return [*lines, "", *([f"Seeds run so far, of {NUM_SEEDS}: {missing}.", ""] if missing else [])]


def spell_difference(mean: Mean, other: Plan) -> str:
    """Returns a difference, with the depth of the fixed plan that it is to."""
    return mean.interval + (f" (depth {other.depth})" if other in FIXED else "")


def depth_of(record: Record, results: Results, plan: Plan, setting: Setting) -> float | None:
    """Returns the mean depth over the seeds at the tuned rate."""
    wanted = (plan.name, *setting, results.rate(plan, setting), TEST)
    return mean_of(
        depth
        for run, depth in record.depths.items()
        if (run.plan, run.rows, run.epochs, run.learning_rate, run.split) == wanted
    )


def nearest(plan: Plan, depth: float | None) -> Plan | None:
    """Returns the fixed plan that a schedule is compared with; None for what is no schedule."""
    if depth is None or plan not in (*SCHEDULES, *SHUFFLED):
        return None
    return min(FIXED, key=lambda each: abs((each.depth or 0) - depth))


def shuffled(plan: Plan) -> Plan | None:
    """Returns the plan that decides from shuffled statistics, where there is one."""
    return PLANS.get(f"{plan.name}{CONTROL}")


def time_lines(record: Record, setting: Setting) -> list[str]:
    """Returns the medians over the rounds of what whole trainings took, and how many times as long full ones took."""
    times = [each for each in record.times if (each.rows, each.epochs) == setting]
    head = ["plan", "depth", "seconds", "full / this, median", "smallest", "largest", "rounds"]
    lines = [f"## Seconds: {spell_setting(setting)}", "", *table_head(head)]
    whole = {each.repeat: each.seconds for each in times if each.plan == FULL.name}
    for plan in (*CONTROLS, *SCHEDULES, *SHUFFLED, *FIXED):
        own = [each for each in times if each.plan == plan.name and each.repeat in whole]
        if own:
            ratios = [whole[each.repeat] / each.seconds for each in own]
            found = (statistics.median(ratios), min(ratios), max(ratios))
            depth = statistics.fmean(each.depth for each in own)
            seconds = statistics.median(each.seconds for each in own)
            figures = [f"{depth:.2f}", f"{seconds:.1f}", *(f"{each:.2f}" for each in found), len(own)]
            lines.append(table_row([plan.about, *figures]))
    return [*lines, ""]


def mean_of(values: Iterable[float]) -> float | None:
    """Returns the mean, or None of nothing."""
    found = list(values)
    return statistics.fmean(found) if found else None
