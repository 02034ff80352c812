"""Config in, answer out: the plans of a search are trained, compared, and the one to take is confirmed."""

from __future__ import annotations

import gc
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from datasets import Dataset

from hf_freeze.config import RunConfig, ScheduleConfig, SearchConfig, override, to_yaml
from hf_freeze.config.search import NO_ADAPTER
from hf_freeze.config.writing import plain_sections, without_secrets
from hf_freeze.errors import ConfigError, PlanError, SearchError, did_you_mean
from hf_freeze.insight.answer import BEST, FULL, RECOMMENDED, Answer, write_answer
from hf_freeze.insight.check import DataReport
from hf_freeze.insight.confirming import Confirmation, Confirming, reconsider
from hf_freeze.insight.front import Recommendation, pareto_front, recommend
from hf_freeze.insight.outcomes import SeedRun, TrialOutcome
from hf_freeze.insight.search import TRIAL_ERRORS, Progress, Report, run_trials
from hf_freeze.insight.space import ADAPTER, DEPTH, SCHEDULE, Point, Space, config_of, make_space
from hf_freeze.insight.study import SearchStudy
from hf_freeze.plan.places import block_role
from hf_freeze.plan.resolve import FreezePlan
from hf_freeze.run.checking import rows_by_role
from hf_freeze.run.planning import empty_plan, num_labels_of, prepared_data, request_of
from hf_freeze.run.trials import TrialRunner
from hf_freeze.tasks import PreparedData, get_task

# What may differ between the runs of one search: it does not change what a trial gives.
_BUDGET: Final = frozenset({"confirm", "seconds", "study", "tolerance", "trials"})
_ROWS_AT_ONCE: Final = 10_000
_STATIC: Final = ScheduleConfig().type
_PLACES: Final = frozenset({"training.output_dir", "activation_cache.dir", "activation_cache.max_size"})


def search(
    config: RunConfig,
    watch: Callable[[Progress], None] = lambda progress: None,
    tell_data: Callable[[DataReport], None] = lambda report: None,
) -> Answer:
    """Searches for a plan, writes the answer into the output folder, and returns it.

    Args:
        config: A config with a `search` section.
        watch: Is told how far the search is, before and after each trial and each run that confirms the answer.
        tell_data: Is told what the data holds, where anything is trained.

    Raises:
        ConfigError: Something in the config does not exist or does not fit the data or the model.
        PlanError: A depth is beyond the blocks of the model.
        SearchError: The study cannot be used, or every trial failed.
    """
    section = _section_of(config)
    _check_one_process()
    plans = _Plans()
    space = make_space(config, section, plans.carriers)
    _check_depths(config, section, plans)
    rows = _checked_rows(config, section)
    if section.confirm.seeds:
        plans.plan(_full(config, section))
    folder = Path(str(config.training["output_dir"]))
    folder.mkdir(parents=True, exist_ok=True)
    path = Path(section.study).expanduser() if section.study is not None else folder / "study.db"
    study = SearchStudy(path, space, section, seed=_seed(config), identity=_identity(config, rows))
    try:
        return _answer(config, space, study, plans, TrialRunner(tell_data), watch)
    finally:
        gc.unfreeze()
        study.close()


def _answer(
    config: RunConfig,
    space: Space,
    study: SearchStudy,
    plans: _Plans,
    runner: TrialRunner,
    watch: Callable[[Progress], None],
) -> Answer:
    """Runs what is left of a search, and writes what it found."""
    section = _section_of(config)

    def made(point: Point) -> RunConfig:
        return config_of(config, space.axes, point, carriers=plans.carriers)

    def run_trial(point: Point, report: Report) -> TrialOutcome:
        return runner.train(made(point), report)

    if study.num_left:
        _prepare(runner, section, made, _by_depth(space))
        # What is there by now stays: the collections of garbage after each trial, 0.2 seconds each, leave it out.
        gc.freeze()
    trials = run_trials(study, section, run_trial, watch)
    num_left = study.num_left
    # Trials are left where the time was up: then those that have ended are all there are.
    is_over = (num_left == 0 or section.seconds is not None) and all(trial.state != "running" for trial in trials)
    front = tuple(pareto_front(trials, section.metric, section.direction))
    found = recommend(trials, section.metric, section.direction, tolerance=section.tolerance)
    answer = Answer(section, space.axes, tuple(trials), front, found, (), is_over=is_over, num_left=num_left)
    if is_over and section.confirm.seeds:
        first = _seed(config)
        confirming = Confirming(
            study,
            lambda each: runner.train(each, on_test=True),
            seeds=range(first, first + section.confirm.seeds),
            watch=lambda runs, left: watch(_progress(answer, runs, left)),
        )
        answer = _confirmed(answer, confirming, made, _full(config, section))
    found = answer.recommendation
    folder = Path(str(config.training["output_dir"]))
    if found is None:
        return write_answer(answer, folder, None)
    plan = {"training.output_dir": str(folder / "recommended")}
    chosen = without_secrets(override(made(found.chosen.point), plan, source="search"))
    return write_answer(answer, folder, to_yaml(chosen))


def _prepare(
    runner: TrialRunner,
    section: SearchConfig,
    made: Callable[[Point], RunConfig],
    depths: Iterable[Iterable[Point]],
) -> None:
    """Reads the rows and fills the activation cache, each prefix from the one before, with a plan of each depth.

    A plan that cannot be trained is no reason to end: another one serves, and its own trial notes what is wrong.
    """
    known: list[str] | None = None
    num_failed = 0
    for points in depths:
        for point in points:
            try:
                if known is None:
                    known = runner.prepare(made(point))
                else:
                    runner.fill(made(point))
            except TRIAL_ERRORS:
                num_failed += 1
                if num_failed == section.trials:
                    return
                continue
            if section.metric not in known:
                raise ConfigError(
                    f"search.metric: no evaluation logs it; got {section.metric!r}. Evaluations log "
                    f"{', '.join(known)}. Name one of them.{did_you_mean(section.metric, known)}"
                )
            break


def _confirmed(answer: Answer, confirming: Confirming, made: Callable[[Point], RunConfig], full: RunConfig) -> Answer:
    """Returns the answer after its confirmation: plans that fail with another seed are not recommended."""
    section, left = answer.section, answer.trials
    failures: list[SeedRun] = []
    while True:
        found = recommend(left, section.metric, section.direction, tolerance=section.tolerance)
        if found is None:
            return replace(answer, recommendation=None, failures=tuple(failures))
        configs = {RECOMMENDED: made(found.chosen.point), BEST: made(found.best.point), FULL: full}
        confirmations = confirming.confirm(configs)
        dropped = {}
        for name, trial in ((RECOMMENDED, found.chosen), (BEST, found.best)):
            if (run := confirming.failure(configs[name])) is not None:
                dropped[trial.number] = replace(run, name=f"trial {trial.number}")
        failures += dropped.values()
        if not dropped:
            break
        left = tuple(trial for trial in left if trial.number not in dropped)
    if (run := confirming.failure(full)) is not None:
        failures.append(run)
    found, confirmations = _reconsidered(found, confirmations, section)
    return replace(answer, recommendation=found, confirmations=confirmations, failures=tuple(failures))


def _progress(answer: Answer, runs: tuple[SeedRun, ...], left: Mapping[str, int]) -> Progress:
    """Returns how far the confirmation is."""
    found = answer.recommendation
    known = {} if found is None else {RECOMMENDED: found.chosen.outcome, BEST: found.best.outcome}
    known |= {run.name: run.outcome for run in runs}
    seconds = {name: outcome.seconds for name, outcome in known.items() if outcome is not None}
    slowest = max(trial.outcome.seconds for trial in answer.trials if trial.outcome is not None)
    seconds_left = sum(count * seconds.get(name, slowest) for name, count in left.items())
    best = None if found is None else found.best
    return Progress(answer.trials, answer.num_left, best, seconds_left, runs, sum(left.values()))


def _reconsidered(
    found: Recommendation, confirmations: tuple[Confirmation, ...], section: SearchConfig
) -> tuple[Recommendation, tuple[Confirmation, ...]]:
    """Returns the plan to take after the confirmation, and the confirmations by what the plans are by then."""
    by_name = {each.name: each for each in confirmations}
    if not {RECOMMENDED, BEST} <= by_name.keys():
        return found, confirmations
    own, best = by_name[RECOMMENDED], by_name[BEST]
    final = reconsider(found, own, best, section.metric, section.direction, tolerance=section.tolerance)
    if final.chosen.number == found.chosen.number:
        return final, confirmations
    renamed = {RECOMMENDED: f"trial {found.chosen.number}, which is cheaper", BEST: RECOMMENDED}
    return final, tuple(replace(each, name=renamed.get(each.name, each.name)) for each in confirmations)


class _Plans:
    """What plans make of configs, found once each on models without weights."""

    def __init__(self) -> None:
        self._found: dict[str, FreezePlan] = {}

    def plan(self, config: RunConfig) -> FreezePlan:
        """Returns the plan of a config."""
        request = request_of(config)
        key = request.model_dump_json(include={"model", "freeze", "adapters", "schedule"})
        if key not in self._found:
            self._found[key] = empty_plan(request, num_labels=num_labels_of(config.data) or 2)
        return self._found[key]

    def carriers(self, config: RunConfig) -> Any:
        """Returns the blocks that train in full, as configs spell them, or None where there are none."""
        plan = self.plan(
            config.model_copy(update={"schedule": ScheduleConfig()})
        )  # What it starts with says too little.
        selections: dict[str, Any] = {}
        for stack in plan.layout.stacks:
            full = [i for i in range(stack.num_blocks) if plan.treatments[block_role(stack.name, i)] == "full"]
            is_top = full == list(range(stack.num_blocks - len(full), stack.num_blocks))
            selections[stack.name] = ({"last": len(full)} if is_top else {"indices": full}) if full else "none"
        if all(selection == "none" for selection in selections.values()):
            return None
        return next(iter(selections.values())) if len(selections) == 1 else selections


def _section_of(config: RunConfig) -> SearchConfig:
    if config.search is None:
        raise ConfigError(
            "search: the config has no such section; got null. It says what is varied, such as "
            "{depths: [2, 3, 4], learning_rates: [1e-4, 3e-4]}. Add it."
        )
    return config.search


def _check_one_process() -> None:
    """Raises where a launcher has started several processes for one run: trials would be trained by all together."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count > 1:
        raise SearchError(
            f"search: each process trains trials of its own; got a launcher that started {count} for one run. "
            "Processes that are started by themselves share a study. Run `hf-freeze search` once for each device, "
            "without `accelerate launch`."
        )


def _seed(config: RunConfig) -> int:
    return int(config.training.get("seed", 42))  # the default of Transformers


def _checked_rows(config: RunConfig, section: SearchConfig) -> PreparedData:
    """Returns the rows; raises where those are missing that plans are compared on, or confirmed on."""
    rows = prepared_data(get_task(config.model.task), config.data)
    has = f"The data set has the splits {', '.join(sorted(set(rows.splits.values())))}."
    if rows.validation is None:
        raise ConfigError(
            f"search.metric: there are no rows to evaluate on; got {section.metric!r}. {has} "
            "Name a split in data.splits.validation."
        )
    if section.confirm.seeds and rows.test is None:
        raise ConfigError(
            f"search.confirm.seeds: there are no test rows to confirm the answer on; got {section.confirm.seeds}. "
            f"{has} Name one in data.splits.test, or set search.confirm.seeds to 0."
        )
    return rows


def _check_depths(config: RunConfig, section: SearchConfig, plans: _Plans) -> None:
    problems = []
    for depth in section.depths or ():
        try:
            plans.plan(override(config, {"search": None, "freeze.blocks": {"first": depth}}, source="search.depths"))
        except PlanError as error:
            problems.append(f"search.depths: {error}")
    if problems:
        raise PlanError("\n".join(problems))


def _by_depth(space: Space) -> list[list[Point]]:
    """Returns the plans of each depth, the least depth first.

    Those without an adapter, which may make the prefix end earlier, and without a schedule, which may start with
    another one, come first.
    """

    def is_special(point: Point) -> tuple[bool, bool]:
        return point.get(ADAPTER, NO_ADAPTER) != NO_ADAPTER, point.get(SCHEDULE, _STATIC) != _STATIC

    found: dict[Any, list[Point]] = {}
    for point in sorted(space.corners, key=is_special):
        found.setdefault(point.get(DEPTH, 0), []).append(point)
    return [found[depth] for depth in sorted(found)]


def _full(config: RunConfig, section: SearchConfig) -> RunConfig:
    """Returns the config of full fine-tuning."""
    everything = override(config, {"search": None, "freeze": None, "adapters": []}, source="search")
    everything = everything.model_copy(update={"schedule": ScheduleConfig()})
    return override(everything, section.confirm.full, source="search.confirm.full")


def _identity(config: RunConfig, rows: PreparedData) -> dict[str, Any]:
    """Returns what the trials depend on, by dotted key: the config, and what the rows hold."""
    sections = plain_sections(without_secrets(config))
    flat = _flat({**sections, "search": {k: v for k, v in sections["search"].items() if k not in _BUDGET}})
    held = {f"rows.{role}": _summary(found, rows.text_columns) for role, found in rows_by_role(rows).items()}
    return {**{key: value for key, value in flat.items() if key not in _PLACES}, **held}


def _summary(rows: Dataset, text_columns: tuple[str, ...]) -> str:
    """Returns how many rows there are, and a digest of their texts and labels.

    The fingerprint that `datasets` gives local files follows where and when they were written, not what they hold.
    """
    digest = hashlib.blake2b(digest_size=8)
    for batch in rows.select_columns([*text_columns, "labels"]).iter(_ROWS_AT_ONCE):
        digest.update(json.dumps(batch).encode())
    return f"{len(rows)} rows, digest {digest.hexdigest()}"


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, child in value.items():
        found.update(_flat(child, f"{prefix}{key}.") if isinstance(child, Mapping) else {f"{prefix}{key}": child})
    return found
