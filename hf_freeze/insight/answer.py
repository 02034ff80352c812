"""The answer of a search: tables and sentences, as Markdown and as a picture, and the config of the plan to take."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from hf_freeze.config import SearchConfig
from hf_freeze.insight.confirming import Confirmation, gap, mean_and_error, on_test_rows
from hf_freeze.insight.front import Recommendation
from hf_freeze.insight.outcomes import SeedRun, Trial
from hf_freeze.insight.plot import draw_front
from hf_freeze.insight.space import Axis

REPORT_FILE: Final = "search.md"
PICTURE_FILE: Final = "search.png"
PLAN_FILE: Final = "recommended.yaml"
_MIB: Final = 1 << 20  # bytes
FULL: Final = "full fine-tuning"
RECOMMENDED: Final = "recommended"
BEST: Final = "best of the search"


@dataclass(frozen=True)
class Answer:
    """What a search found.

    Attributes:
        section: The `search` section.
        axes: What was varied.
        trials: Every trial.
        front: The complete trials that no other beats.
        recommendation: The plan to take; None where no trial is complete.
        confirmations: What it, the best plan and full fine-tuning gave on the test rows.
        is_over: Whether no trial runs any more, and none is to begin.
        num_left: How many trials there was no time to begin, where it is over.
        failures: The runs in which plans failed that were to be confirmed; such plans are not recommended.
        files: What was written.
    """

    section: SearchConfig
    axes: tuple[Axis, ...]
    trials: tuple[Trial, ...]
    front: tuple[Trial, ...]
    recommendation: Recommendation | None
    confirmations: tuple[Confirmation, ...]
    is_over: bool
    num_left: int = 0
    failures: tuple[SeedRun, ...] = ()
    files: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """How many trials there were, and how they ended."""
        states = [trial.state for trial in self.trials]
        counts = [(states.count(state), state) for state in ("complete", "pruned", "failed", "running", "waiting")]
        return f"{len(states)} trials: {', '.join(f'{count} {state}' for count, state in counts if count)}."

    @property
    def head(self) -> tuple[str, ...]:
        """The columns of the table of trials; the last five hold numbers."""
        names = (axis.name for axis in self.axes)
        return ("", "trial", *names, "state", self.section.metric, "seconds", "peak MiB", "trainable", "evaluations")

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """The table of trials, the best metric first; * marks the front, > the plan to take."""
        sign = -1 if self.section.direction == "maximize" else 1
        order = ["complete", "pruned", "running", "waiting", "failed"]

        def place(trial: Trial) -> tuple[int, float]:
            value = math.inf if trial.outcome is None else sign * trial.outcome.metrics[self.section.metric]
            return order.index(trial.state), value

        return [self._row(trial) for trial in sorted(self.trials, key=place)]

    def _row(self, trial: Trial) -> tuple[str, ...]:
        is_chosen = self.recommendation is not None and trial.number == self.recommendation.chosen.number
        mark = (">" if is_chosen else "") + ("*" if trial in self.front else "")
        values = (str(trial.point.get(axis.name, "")) for axis in self.axes)
        if (outcome := trial.outcome) is None:
            return (mark, str(trial.number), *values, trial.state, "", "", "", "", "")
        numbers = (
            f"{outcome.metrics[self.section.metric]:.4f}",
            f"{outcome.seconds:.1f}",
            f"{outcome.peak_memory_bytes / _MIB:,.0f}",
            f"{outcome.num_trainable:,}",
            str(outcome.num_evaluations),
        )
        return (mark, str(trial.number), *values, trial.state, *numbers)

    @property
    def memory(self) -> str:
        """What the column of memory holds."""
        if any(trial.outcome is not None and trial.outcome.on_gpu for trial in self.trials):
            return "peak MiB: the most GPU memory that was held while a plan trained, measured."
        return (
            "peak MiB: the most memory that the process held while a plan trained, measured; Python and its libraries "
            "are in it, mapped files are not."
        )

    @property
    def confirmation_head(self) -> tuple[str, ...]:
        """The columns of the table of test results; all but the first hold numbers."""
        return ("plan", on_test_rows(self.section.metric), "standard error", "seconds", "peak MiB", "trainable")

    @property
    def confirmation_rows(self) -> list[tuple[str, ...]]:
        """The table of test results: the mean over the seeds, and its standard error."""
        rows: list[tuple[str, ...]] = []
        for found in self.confirmations:
            mean, error = mean_and_error(found.scores(self.section.metric))
            memory, trainable = found.peak_memory_bytes / _MIB, found.outcomes[0].num_trainable
            error_cell = f"{error:.4f}" if math.isfinite(error) else ""
            cells = (f"{mean:.4f}", error_cell, f"{found.seconds:.1f}", f"{memory:,.0f}", f"{trainable:,}")
            rows.append((found.name, *cells))
        return rows

    @property
    def sentences(self) -> tuple[str, ...]:
        """What to do, why, and where full fine-tuning would win."""
        failed = [
            f"{run.name[:1].upper()}{run.name[1:]} could not be confirmed; with seed {run.seed} it gave: {run.error}."
            for run in self.failures
        ]
        if self.recommendation is None:
            what = "No plan could be confirmed" if self.front else "No trial is complete yet"
            return (f"{what}, so there is nothing to recommend.", *failed)
        chosen = self.recommendation.chosen
        plan = ", ".join(f"{axis.name} {chosen.point[axis.name]}" for axis in self.axes)
        lines = [f"Recommended: trial {chosen.number} ({plan}). {self.recommendation.reason}"]
        if not self.is_over:
            lines.append("Not all trials have ended; run the same command again to go on.")
        elif self.num_left:
            many = "one more trial" if self.num_left == 1 else f"{self.num_left} more trials"
            lines.append(f"The time was up before {many} could begin; run the same command again to go on.")
        lines += failed
        by_name = {found.name: found for found in self.confirmations}
        if RECOMMENDED in by_name and BEST in by_name and chosen.number != self.recommendation.best.number:
            lines.append(self._against_best(by_name[RECOMMENDED], by_name[BEST]))
        if RECOMMENDED in by_name and FULL in by_name:
            lines.append(self._against_full(by_name[RECOMMENDED], by_name[FULL]))
        else:
            lines.append("It was not compared with full fine-tuning on the test rows.")
        return tuple(lines)

    def _figures(self, gain: float, error: float, own: Confirmation) -> str:
        difference = gain if self.section.direction == "maximize" else -gain
        figures = f"{difference:+.4f} in {on_test_rows(self.section.metric)}"
        if not math.isfinite(error):
            return f"{figures} with one seed, which tells no standard error"
        return f"{figures}, standard error {error:.4f} over {len(own.outcomes)} seeds"

    def _against_best(self, own: Confirmation, best: Confirmation) -> str:
        gain, error = gap(best, own, self.section.metric, self.section.direction, on_test=True)
        is_known = math.isfinite(error)
        ahead = "more than a standard error ahead" if is_known else "ahead"
        is_ahead = gain > (error if is_known else 0.0)
        return (
            f"The best plan of the search is {'' if is_ahead else 'not '}{ahead} of it on the test rows "
            f"({self._figures(gain, error, own)})."
        )

    def _against_full(self, own: Confirmation, full: Confirmation) -> str:
        gain, error = gap(full, own, self.section.metric, self.section.direction, on_test=True)
        times = full.seconds / own.seconds
        figures = self._figures(gain, error, own)
        if gain > (error if math.isfinite(error) else 0.0):
            return (
                f"Full fine-tuning still wins on the test rows ({figures}): take it where that is worth {times:.1f} "
                "times the training time."
            )
        return (
            f"Full fine-tuning does not win on the test rows ({figures}) and trains {times:.1f} times as long. It may "
            "still win with more rows, more epochs or learning rates of its own: none of these was searched for it."
        )


def write_answer(answer: Answer, folder: Path, plan: str | None) -> Answer:
    """Writes the report, the picture and the config of the plan to take, and returns the answer with their names.

    Args:
        answer: What was found.
        folder: Where to.
        plan: The YAML of the config; None where there is none.
    """
    files = [folder / REPORT_FILE]
    lines = [
        "# Search",
        "",
        answer.summary,
        "",
        *_table(answer.head, answer.rows),
        "",
        "`*`: no other complete trial is as good and as cheap. `>`: recommended.",
        answer.memory,
        "",
        *(line for sentence in answer.sentences for line in (sentence, "")),
    ]
    if answer.confirmations:
        lines += ["On the test rows, means over the seeds:", ""]
        lines += _table(answer.confirmation_head, answer.confirmation_rows)
    if answer.front:
        files.append(folder / PICTURE_FILE)
        draw_front(
            files[-1],
            answer.trials,
            metric=answer.section.metric,
            direction=answer.section.direction,
            chosen=None if answer.recommendation is None else answer.recommendation.chosen,
        )
        lines += ["", f"![The metric against what plans cost]({PICTURE_FILE})"]
    if plan is not None:
        files.append(folder / PLAN_FILE)
        files[-1].write_text(plan, encoding="utf-8")
        lines += ["", f"The plan is in `{PLAN_FILE}`; `hf-freeze train` takes it."]
    files[0].write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    return replace(answer, files=tuple(map(str, files)))


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
