"""The study of a search: every trial and what it gave, in a SQLite file that outlives any process.

A trial is asked for, run, and told. Asking happens in turn, so that no plan is taken twice; a trial whose process was
killed is marked so, and its plan is asked for again.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import optuna
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import DatabaseError, OperationalError

from hf_freeze.config import SearchConfig
from hf_freeze.errors import ConfigError, SearchError
from hf_freeze.insight.claims import Claims
from hf_freeze.insight.outcomes import Trial, TrialOutcome
from hf_freeze.insight.pruning import GuardedHalving
from hf_freeze.insight.sampling import UntriedSampler, suggest
from hf_freeze.insight.space import Point, Space

# How long a process waits for another one that writes, in seconds.
LOCK_TIMEOUT = 60

_NAME: Final = "search"
_CONFIG: Final = "config"
_AGAIN: Final = "again"
_OUTCOME: Final = "outcome"
_ERROR: Final = "error"
_CONFIRMED: Final = "confirmed"


@dataclass(frozen=True)
class Asked:
    """A trial to run.

    Attributes:
        number: Its number in the study.
        point: Its plan.
        trial: Optuna's own handle, which takes reports.
    """

    number: int
    point: Point
    trial: optuna.Trial


class SearchStudy:
    """The trials of one search, shared by all processes that open the same file.

    Args:
        path: The SQLite file; it is made where it does not exist.
        space: The plans.
        section: The `search` section.
        seed: What the order of plans is drawn from.
        identity: What the trials depend on, as plain data: a study of another one is refused.

    Raises:
        ConfigError: The study is of another config, or of other rows.
        SearchError: The file cannot be used.
    """

    def __init__(
        self, path: Path, space: Space, section: SearchConfig, *, seed: int, identity: Mapping[str, Any]
    ) -> None:
        self.path = path
        self.space = space
        self._section = section
        self._seed = seed
        with self._explained():
            self._claims = Claims(path.with_name(f"{path.name}.lock"))
            with self._claims.turn():
                self._study = self._open()
                self._check(identity)

    @property
    def trials(self) -> list[Trial]:
        """What is known about every trial that was not killed, in the order in which they began."""
        with self._explained():
            found = [trial for trial in self._study.get_trials(deepcopy=False) if not _is_killed(trial)]
        return [_trial(each, self.space.named(_point(each))) for each in found]

    @property
    def num_left(self) -> int:
        """How many more trials there are to begin."""
        known = self.trials
        left = int(min(self._section.trials, self.space.num_plans)) - len(known)
        waiting = sum(trial.state == "waiting" for trial in known)
        return max(0, left) + waiting

    def ask(self) -> Asked | None:
        """Takes the next trial, or returns None where there is none to begin.

        Raises:
            SearchError: The file cannot be used.
        """
        with self._explained(), self._claims.turn():
            self._revive()
            if self.num_left == 0:
                return None
            is_tpe = self._section.sampler == "tpe"
            self._study.sampler = UntriedSampler(self.space, self.trials, seed=self._seed, uses_tpe=is_tpe)
            trial = self._study.ask()
            self._claims.claim_trial(trial.number)
            for axis in self.space.axes:
                suggest(trial, axis)
            return Asked(trial.number, dict(trial.params), trial)

    def report(self, asked: Asked, value: float, step: int, *, is_last: bool) -> bool:
        """Notes the metric after an evaluation, and returns whether the trial is to end early.

        Args:
            asked: The trial.
            value: The metric.
            step: Which evaluation it was, from 1.
            is_last: Whether there is none after it: the trial is at its end then.
        """
        with self._explained():
            asked.trial.report(value, step)
            return not is_last and asked.trial.should_prune()

    def tell(self, asked: Asked, outcome: TrialOutcome, *, is_pruned: bool) -> None:
        """Records what a trial gave.

        Args:
            asked: The trial.
            outcome: What it gave.
            is_pruned: Whether it was ended early.
        """
        with self._explained():
            asked.trial.set_user_attr(_OUTCOME, asdict(outcome))
            if is_pruned:
                self._study.tell(asked.trial, state=TrialState.PRUNED)
            else:
                self._study.tell(asked.trial, outcome.metrics[self._section.metric])
            self._claims.release_trial(asked.number)

    def tell_failure(self, asked: Asked, error: str) -> None:
        """Records that a trial failed.

        Args:
            asked: The trial.
            error: Why.
        """
        with self._explained():
            asked.trial.set_user_attr(_ERROR, error)
            self._study.tell(asked.trial, state=TrialState.FAIL)
            self._claims.release_trial(asked.number)

    def claim_confirmation(self, name: str) -> bool:
        """Takes a run that confirms the answer, unless it is done or another process has it.

        Args:
            name: What it is recorded under, in hexadecimal digits.
        """
        with self._explained(), self._claims.turn():
            return name not in self.confirmed and self._claims.claim_confirmation(_place(name))

    def record_confirmation(self, name: str, outcome: TrialOutcome) -> None:
        """Records what a run gave that confirms the answer.

        Args:
            name: What it is recorded under.
            outcome: What it gave.
        """
        with self._explained():
            self._study.set_user_attr(f"{_CONFIRMED} {name}", asdict(outcome))
        self.release_confirmation(name)

    def release_confirmation(self, name: str) -> None:
        """Gives a run back that failed.

        Args:
            name: What it would be recorded under.
        """
        with self._explained():
            self._claims.release_confirmation(_place(name))

    @property
    def confirmed(self) -> dict[str, TrialOutcome]:
        """What the runs gave that confirm the answer, by what they are recorded under."""
        with self._explained():
            found = self._study.user_attrs
        return {
            name.removeprefix(f"{_CONFIRMED} "): TrialOutcome(**value)
            for name, value in found.items()
            if name.startswith(f"{_CONFIRMED} ")
        }

    def close(self) -> None:
        """Gives back what this process holds."""
        self._claims.close()

    def _open(self) -> optuna.Study:
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # It has a sentence for every trial.
        storage = RDBStorage(f"sqlite:///{self.path}", engine_kwargs={"connect_args": {"timeout": LOCK_TIMEOUT}})
        section = self._section
        num_trials = int(min(section.trials, self.space.num_plans)) if section.seconds is None else None
        halving = GuardedHalving(min_complete=section.min_complete, num_trials=num_trials)
        return optuna.create_study(
            storage=storage,
            study_name=_NAME,
            direction=section.direction,
            pruner=halving if section.pruner == "halving" else optuna.pruners.NopPruner(),
            load_if_exists=True,
        )

    def _check(self, identity: Mapping[str, Any]) -> None:
        """Notes what the trials depend on, or refuses the study of another config."""
        known = self._study.user_attrs.get(_CONFIG)
        if known is None:
            # The first write: it shows whether there can be any.
            self._study.set_user_attr(_CONFIG, dict(identity))
            return
        self._study.set_user_attr(_CONFIG, known)
        differences = [
            f"{key} was {known.get(key)!r} and is {identity.get(key)!r} here"
            for key in sorted(known.keys() | identity.keys())
            if known.get(key) != identity.get(key)
        ]
        if differences:
            raise ConfigError(
                f"search.study: was made for another config or other rows; got {str(self.path)!r}, in which "
                f"{'; '.join(differences)}. The trials of a study have one config and the same rows. Restore what "
                "differs, or name another file."
            )

    def _revive(self) -> None:
        """Marks trials whose process was killed, and has their plans asked for again."""
        trials = self._study.get_trials(deepcopy=False)
        again = {found.user_attrs[_AGAIN] for found in trials if _AGAIN in found.user_attrs}
        for found in trials:
            number = found.number
            if found.state != TrialState.RUNNING or self._claims.holds_trial(number):
                continue
            if not self._claims.claim_trial(number):
                continue
            # A process gives a trial back once it has told what it gave: it may have done so since the list was read.
            if self._study.get_trials(deepcopy=False)[number].state != TrialState.RUNNING:
                self._claims.release_trial(number)
                continue
            point = _point(found)
            is_lost = _ERROR not in found.user_attrs and len(point) == len(self.space.axes)
            if is_lost and number not in again:
                # Before the old one is ended: whatever happens between the two, the plan is not lost.
                self._study.enqueue_trial(point, user_attrs={_AGAIN: number})
            self._study.tell(number, state=TrialState.FAIL)
            self._claims.release_trial(number)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turns what Optuna, SQLite and the system refuse into an error in words."""
        try:
            yield
        except optuna.exceptions.UpdateFinishedTrialError as error:
            raise SearchError(
                "search.study: another process took a trial that runs here for a killed one; got "
                f"{str(self.path)!r}. Processes lock the trials that they run, and on this filesystem not all of them "
                "see these locks. Keep the study where all machines share POSIX locks, or search on one machine."
            ) from error
        except (DatabaseError, optuna.exceptions.StorageInternalError, OSError) as error:
            raise self._refusal(error) from error

    def _refusal(self, error: Exception) -> SearchError:
        cause = error.__cause__ if isinstance(error, optuna.exceptions.StorageInternalError) else error
        text = str(cause.orig) if isinstance(cause, DatabaseError) else str(cause)
        got = f"got {str(self.path)!r}"
        if isinstance(cause, OperationalError) and "locked" in text:
            what = f"another process kept this study locked for {LOCK_TIMEOUT} seconds"
            return SearchError(
                f"search.study: {what}; {got}. Processes share a study, but one at a time writes. "
                "End the process that holds it open, and start again: nothing is lost."
            )
        if not os.access(self.path if self.path.exists() else self.path.parent, os.W_OK) or "readonly" in text:
            return SearchError(
                f"search.study: this study cannot be written; {got}. Each trial is noted there. "
                "Make the file and its folder writable, or name another file."
            )
        return SearchError(
            f"search.study: this file cannot be used as a study; {got}. SQLite says: {text}. "
            "Name a new file, or one that a search has written."
        )


def _place(name: str) -> int:
    """Returns where a run is claimed: the same place in all processes, whatever else they confirm."""
    return int(name[:12], 16)


def _is_killed(found: FrozenTrial) -> bool:
    return found.state == TrialState.FAIL and _ERROR not in found.user_attrs


def _point(found: FrozenTrial) -> dict[str, Any]:
    """Returns the plan of a trial, as far as it was chosen before its process ended."""
    return {**found.system_attrs.get("fixed_params", {}), **found.params}


def _trial(found: FrozenTrial, point: Point) -> Trial:
    names = {
        TrialState.RUNNING: "running",
        TrialState.WAITING: "waiting",
        TrialState.COMPLETE: "complete",
        TrialState.PRUNED: "pruned",
        TrialState.FAIL: "failed",
    }
    outcome = found.user_attrs.get(_OUTCOME)
    return Trial(
        found.number,
        names[found.state],
        point,
        None if outcome is None else TrialOutcome(**outcome),
        found.user_attrs.get(_ERROR),
    )
