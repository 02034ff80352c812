"""What a schedule is: something that decides, before every step, which roles are frozen.

A schedule decides from how far training is, from metrics and statistics where it asks for them, and from a state of its
own. It never sees the model: freezing and thawing are done by the trainer, and so are the checks of what a schedule
returns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from hf_freeze.config.freeze import FreezeConfig
from hf_freeze.config.schedule import ScheduleOptions
from hf_freeze.schedules.outline import Outline, Stretch
from hf_freeze.schedules.run_length import RunLength
from hf_freeze.schedules.statistics import Statistics

EMBEDDINGS, HEAD = "embeddings", "head"


@dataclass(frozen=True)
class Course:
    """What a schedule knows before training begins.

    Attributes:
        blocks: The roles of the blocks from the input on, of all stacks one after the other.
        roles: All roles: `embeddings`, those of the blocks, and `head`.
        frozen: The roles that the `freeze` section freezes.
        is_asked: Whether there is such a section.
        embeddings_follow: Whether the embeddings freeze with the first block, as `embeddings: auto` says.
        seed: The seed of the run.
        frozen_by: Returns the roles that a section like `freeze` freezes, given what messages call it.
    """

    blocks: tuple[str, ...]
    roles: tuple[str, ...]
    frozen: frozenset[str]
    is_asked: bool
    embeddings_follow: bool
    seed: int
    frozen_by: Callable[[FreezeConfig, str], frozenset[str]]

    @property
    def trained(self) -> frozenset[str]:
        """The roles that train where nothing is scheduled."""
        return frozenset(self.roles) - self.frozen


@dataclass(frozen=True)
class Moment:
    """How far training is when a schedule decides, which is before a step.

    Attributes:
        step: Optimizer steps that are done.
        num_steps: Optimizer steps in all.
        epoch: Epochs that are done, with their fraction.
        num_epochs: Epochs in all.
        metrics: What was evaluated since the step before, as it is logged; empty where nothing was.
        statistics: What was gathered of the blocks, at moments that the schedule calls due.
    """

    step: int
    num_steps: int
    epoch: float
    num_epochs: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    statistics: Statistics = field(default_factory=Statistics)

    @property
    def progress(self) -> float:
        """The share of the steps that is done, from 0 to 1."""
        return self.step / self.num_steps


@dataclass(frozen=True)
class Choice:
    """What a schedule decided.

    Attributes:
        frozen: The roles that are frozen from now on.
        why: The reason, in a few words.
        numbers: The numbers that led to it.
        renewed: The roles that go on training, but as if they were thawed: with a fresh optimizer state and a warm-up.
    """

    frozen: frozenset[str]
    why: str
    numbers: Mapping[str, float] = field(default_factory=dict)
    renewed: frozenset[str] = frozenset()


class Schedule:
    """Decides which roles are frozen; a schedule of your own derives from this class.

    Attributes:
        Options: The options that the `schedule` section may give beside `type`.
        needs_metrics: Whether it decides from evaluation metrics.

    Args:
        options: The options, checked.
        course: What is known before training begins.
    """

    Options: ClassVar[type[ScheduleOptions]] = ScheduleOptions
    needs_metrics: bool = False

    def __init__(self, options: Any, course: Course) -> None:
        self.options = options
        self.course = course

    @property
    def start(self) -> frozenset[str]:
        """The roles that are frozen when training starts: those of the `freeze` section."""
        return self.course.frozen

    @property
    def may_train(self) -> frozenset[str]:
        """The roles that may ever train: all of them, where a schedule does not know better."""
        return frozenset(self.course.roles)

    @property
    def warmup(self) -> int:
        """Steps over which the learning rate of what was thawed rises to its full value."""
        return 0

    @property
    def keeps_optimizer_state(self) -> bool:
        """Whether the optimizer keeps what it knows about parameters that are frozen, and the memory for it."""
        return False

    def begin(self, run: RunLength) -> None:
        """Checks that the schedule fits the length of the run; called before training begins.

        Args:
            run: How long training will be.

        Raises:
            PlanError: It does not fit.
        """

    def decide(self, moment: Moment) -> Choice | None:
        """Returns the roles that are frozen from now on, or None where nothing changes; called before every step.

        Args:
            moment: How far training is.
        """
        raise NotImplementedError(f"{type(self).__name__} has no method decide")

    @property
    def needs(self) -> frozenset[str]:
        """The statistics to gather from now on: `gradients`, `drift` and `probe`, as `Statistics` explains them.

        What is not in it is not gathered, and what was gathered for it is freed.
        """
        return frozenset()

    def is_due(self, moment: Moment) -> bool:
        """Returns whether the decision at this moment reads the statistics: every one, where it does not say otherwise.

        Args:
            moment: How far training is, without statistics.
        """
        return True

    @property
    def bounds(self) -> tuple[frozenset[str], frozenset[str]]:
        """The roles that are frozen at every moment, and those that are frozen at one moment at most.

        They are shown before training where what is frozen is decided while training.
        """
        never = frozenset(self.course.roles) - self.may_train
        return never, (frozenset(self.course.roles) - {HEAD}) | self.start

    def outline(self, run: RunLength) -> Outline:
        """Returns the course of the schedule as far as it is known before training.

        A schedule that needs metrics or statistics decides while training: then it is its bounds. Any other decides
        from the moment alone, and is asked for every step of the run.

        Args:
            run: How long training will be.

        Raises:
            PlanError: The schedule does not fit the length of the run.
        """
        fresh = self._anew()
        fresh.begin(run)
        if fresh.needs or fresh.needs_metrics:
            least, most = fresh.bounds
            return Outline((Stretch(0, least),), (Stretch(0, most),), is_adaptive=True)
        stretches = [Stretch(0, fresh.start)]
        for step in range(run.num_steps):
            moment = Moment(step, run.num_steps, step * run.num_epochs / run.num_steps, run.num_epochs)
            choice = fresh.decide(moment)
            if choice is not None and choice.frozen != stretches[-1].frozen:
                stretches = [*(stretches if step else ()), Stretch(step, choice.frozen)]
        return Outline(tuple(stretches), tuple(stretches), is_adaptive=False)

    def _anew(self) -> Schedule:
        """Returns the schedule in its first state."""
        return type(self)(self.options, self.course)

    def lr_factors(self, moment: Moment) -> Mapping[str, float]:
        """Returns the factor on the learning rate of each role for the next step; 1 for what is not in it.

        Args:
            moment: How far training is.
        """
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Returns what a checkpoint has to keep: plain data by name, or tensors by name."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state_dict` returned.

        Args:
            state: What it returned when the checkpoint was written.
        """
