"""What the record of a run advises, with the numbers behind it. Pure.

The thresholds, and why they are what they are:

- `MIN_STEPS`: earlier losses and weights tell of warm-up and of single batches.
- `MIN_RISE`: evaluations run over the same rows, so that what they differ by is the model; 2 % is still more than what
  dropout and the order of the rows move them by from one seed to the next.
- `MIN_FALL`: a run that learns leaves more than 5 % of its first loss behind within its first half.
- `HIGH_SHARE`: a classifier that guesses among K classes has the loss ln K. One that stays below half of that has
  learned, and a loss that no longer falls there is no fault.
- `STILL`: bfloat16 keeps 8 bits of a weight, so that rounding moves each weight by up to 0.4 % and all together, as a
  drift, by 0.16 %. What training moves less than 0.1 % is less than what saving in half precision does to it.
- `STILL_BESIDE`: another role moved at least ten times as far, so that it is the role and not the learning rate.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

PREFIX: Final = "monitor"
GRADIENT, DRIFT, UPDATE = (f"{PREFIX}/{quantity}" for quantity in ("grad_norm", "drift", "update_ratio"))

MIN_STEPS: Final = 50
MIN_RISE: Final = 0.02
MIN_FALL: Final = 0.05
HIGH_SHARE: Final = 0.5
STILL: Final = 1e-3
STILL_BESIDE: Final = 10.0

Kind: TypeAlias = Literal["overfits", "stays high", "hardly moves"]


@dataclass(frozen=True)
class Advice:
    """One thing to do differently.

    Attributes:
        kind: What the record shows.
        subject: What it shows it of: the name of an evaluation loss, `loss`, or a role.
        text: What it shows, with its numbers, and what to do.
    """

    kind: Kind
    subject: str
    text: str


@dataclass
class Record:
    """What is known of a run so far.

    Attributes:
        losses: Step and training loss, which is the mean since the entry before: of the main process, and before the
            step that a run is resumed from as it was logged.
        evaluations: Steps and losses by name: `eval_loss`, or one for each evaluation dataset.
        drifts: How far each role was from its start when it was last measured.
    """

    losses: list[tuple[int, float]] = field(default_factory=list)
    evaluations: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    drifts: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, history: Iterable[Mapping[str, float]]) -> Record:
        """Returns the record of a run that is resumed.

        Args:
            history: The `log_history` of its `TrainerState`.
        """
        record = cls()
        for entry in history:
            record.add(entry, step=int(entry["step"]))
        return record

    def add(self, logs: Mapping[str, float], *, step: int) -> None:
        """Adds what was logged at a step.

        Args:
            logs: Names and values.
            step: The step.
        """
        for name, value in logs.items():
            if name == "loss":
                self.losses.append((step, float(value)))
            elif name.startswith("eval_") and name.endswith("_loss"):
                self.evaluations.setdefault(name, []).append((step, float(value)))
            elif name.startswith(f"{DRIFT}/"):
                self.drifts[name.removeprefix(f"{DRIFT}/")] = float(value)


def advise(record: Record, *, step: int, num_steps: int, chance: float | None) -> list[Advice]:
    """Returns everything that the record advises.

    Args:
        record: What was logged.
        step: How many steps have been made.
        num_steps: How many steps the run has.
        chance: The loss of guessing, where it is known.
    """
    if step < MIN_STEPS:
        return []
    found = [overfits(record.losses, series, name=name) for name, series in record.evaluations.items()]
    if 2 * step >= num_steps:
        found += [stays_high(record.losses, chance=chance), *hardly_move(record.drifts)]
    return [advice for advice in found if advice is not None]


def overfits(
    losses: Sequence[tuple[int, float]], evaluations: Sequence[tuple[int, float]], *, name: str
) -> Advice | None:
    """Returns advice where the last two evaluations rose, while the training loss fell.

    The last one must be `MIN_RISE` above the lowest, and the training loss must be lower after the lowest than before.

    Args:
        losses: Steps and training losses.
        evaluations: Steps and evaluation losses.
        name: What the evaluation loss is called.
    """
    if len(evaluations) < 3:
        return None
    before, middle, (step, last) = evaluations[-3:]
    lowest_step, lowest = min(evaluations, key=lambda point: point[1])
    if not (before[1] < middle[1] < last and last >= (1 + MIN_RISE) * lowest):
        return None
    earlier = _mean(loss for at, loss in losses if at <= lowest_step)
    later = _mean(loss for at, loss in losses if at > lowest_step)
    if earlier is None or later is None or later >= earlier:
        return None
    return Advice(
        "overfits",
        name,
        f"{name} rises while the training loss falls: {lowest:.4g} at step {lowest_step} was the lowest, and it is "
        f"{last:.4g} at step {step}; the training loss went from {earlier:.4g} before to {later:.4g} after. Freeze "
        "more blocks, or train for fewer steps.",
    )


def stays_high(losses: Sequence[tuple[int, float]], *, chance: float | None) -> Advice | None:
    """Returns advice where the training loss has fallen by less than `MIN_FALL`.

    The first and the last quarter of the steps so far are compared. Below `HIGH_SHARE` of guessing no loss is high.

    Args:
        losses: Steps and training losses.
        chance: The loss of guessing, where it is known.
    """
    end = losses[-1][0] if losses else 0
    first = _mean(loss for step, loss in losses if 4 * step <= end)
    last = _mean(loss for step, loss in losses if 4 * step > 3 * end)
    if first is None or last is None:
        return None
    is_low = chance is not None and last < HIGH_SHARE * chance
    if is_low or last <= (1 - MIN_FALL) * first:
        return None
    guessing = "" if chance is None else f" (guessing gives {chance:.4g})"
    return Advice(
        "stays high",
        "loss",
        f"The training loss stays high: it was {first:.4g} over the first quarter of the steps so far, and is "
        f"{last:.4g} over the last{guessing}. Freeze fewer blocks, or raise training.learning_rate.",
    )


def hardly_move(drifts: Mapping[str, float]) -> list[Advice]:
    """Returns advice for every role that moved by less than `STILL`, and `STILL_BESIDE` times less than another.

    Args:
        drifts: How far each role is from its start.
    """
    if not drifts:
        return []
    farthest = max(drifts, key=lambda role: drifts[role])
    return [
        Advice(
            "hardly moves",
            role,
            f"{role} hardly moves: its weights are {drift:.2%} from where they started, and those of {farthest} "
            f"{drifts[farthest]:.2%}. Freeze it, or raise its learning rate.",
        )
        for role, drift in drifts.items()
        if drift < STILL and STILL_BESIDE * drift <= drifts[farthest]
    ]


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return sum(found) / len(found) if found else None
