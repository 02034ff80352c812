"""How long a plan trains: pure arithmetic on what a traced step does and on how fast a device is.

A step takes, after the roofline model (Williams et al. 2009) with its terms added up, because the operations of a step
follow each other:

    FLOPs / rate + bytes of all other operations / bandwidth + random numbers / rate + operations * overhead

Units: bytes, seconds, floating-point operations.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from hf_freeze.plan.tracing import StepTrace, Work

# What storing a row in the activation cache costs, as a share of computing it.
_STORING: Final = 0.1


@dataclass(frozen=True)
class Rates:
    """How fast a device is.

    Attributes:
        flops: Floating-point operations per second, of matrix products.
        num_bytes: Bytes per second that other operations read and write.
        num_random: Random numbers per second.
        operation: Seconds that an operation takes whatever its size.
        step: Seconds that the training loop takes for a step beside forward pass, backward pass and optimizer.
    """

    flops: float
    num_bytes: float
    num_random: float
    operation: float
    step: float

    def seconds(self, work: Work) -> float:
        """Returns how long operations take, in seconds."""
        return (
            work.flops / self.flops
            + work.num_bytes / self.num_bytes
            + work.num_random / self.num_random
            + work.num_operations * self.operation
        )


# Only their ratios matter for a speed-up. `cpu` follows `python -m benchmarks.cost rates` on two cores of a Xeon; more
# cores raise all but the last two. `cuda` follows the data sheet of an NVIDIA A100 (19.5 TFLOP/s in float32, 2.0
# TB/s), of which matrix products reach about 0.8 and other operations 0.7; it is not measured.
DEFAULT_RATES: Final[Mapping[str, Rates]] = {
    "cpu": Rates(flops=310e9, num_bytes=30e9, num_random=140e6, operation=6e-6, step=3e-3),
    "cuda": Rates(flops=15e12, num_bytes=1.4e12, num_random=300e9, operation=6e-6, step=2e-3),
}
# How much faster matrix products are in 16 bits: not on most CPUs; on an A100 312 to 19.5 TFLOP/s on paper.
HALF_PRECISION_FACTORS: Final[Mapping[str, float]] = {"cpu": 1.0, "cuda": 10.0}


@dataclass(frozen=True)
class Speedup:
    """How much faster a plan trains than another way: its time over ours.

    Attributes:
        step: Of an update.
        run: Of the whole run, all evaluations and the build of the cache included; None where the data is not known.
    """

    step: float
    run: float | None


@dataclass(frozen=True)
class RunLength:
    """How much there is to do.

    Attributes:
        num_steps: Updates.
        accumulation: Batches per update.
        evaluation_batches: What all evaluations take together, in batches of training.
        build_batches: What filling the activation cache takes, in batches of training; there is no padding in it.
    """

    num_steps: int
    accumulation: int = 1
    evaluation_batches: float = 0.0
    build_batches: float = 0.0


@dataclass(frozen=True)
class Timing:
    """How long the parts of a run take, in seconds.

    Attributes:
        step: An update.
        evaluation: The forward pass over a batch in an evaluation.
        prefix_step: The part of `step` that the blocks of the frozen prefix take.
        prefix_evaluation: The part of `evaluation` that these blocks take.
    """

    step: float
    evaluation: float
    prefix_step: float = 0.0
    prefix_evaluation: float = 0.0

    def run(self, length: RunLength) -> float:
        """Returns how long a run takes without the activation cache."""
        return length.num_steps * self.step + length.evaluation_batches * self.evaluation

    def cached_step(self) -> float:
        """Returns how long an update takes behind the activation cache."""
        return self.step - self.prefix_step

    def cached_run(self, length: RunLength) -> float:
        """Returns how long a run takes with the activation cache, its build included."""
        evaluations = length.evaluation_batches * (self.evaluation - self.prefix_evaluation)
        served = length.num_steps * self.cached_step() + evaluations
        return served + self.build(length)

    def build(self, length: RunLength) -> float:
        """Returns how long the activation cache takes to build."""
        return (1 + _STORING) * length.build_batches * self.prefix_evaluation


def timing(
    step: StepTrace,
    evaluation: StepTrace,
    *,
    rates: Rates,
    update: Work,
    accumulation: int = 1,
    prefix: Iterable[str] = (),
) -> Timing:
    """Predicts how long the parts of a run take.

    Args:
        step: What a step does.
        evaluation: What the forward pass does in an evaluation.
        rates: How fast the device is.
        update: What the optimizer does.
        accumulation: Batches per update.
        prefix: The blocks of the frozen prefix.
    """
    names = set(prefix)
    work = sum((trace.forward + trace.backward for trace in step.roles.values()), Work())
    skipped = sum((trace.forward for role, trace in step.roles.items() if role in names), Work())
    evaluated = sum((trace.forward for trace in evaluation.roles.values()), Work())
    spared = sum((trace.forward for role, trace in evaluation.roles.items() if role in names), Work())
    return Timing(
        step=accumulation * rates.seconds(work) + rates.seconds(update) + rates.step,
        evaluation=rates.seconds(evaluated),
        prefix_step=accumulation * rates.seconds(skipped),
        prefix_evaluation=rates.seconds(spared),
    )
