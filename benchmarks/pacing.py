"""Lets trainings advance step by step in turns, so that a load on the machine hits all of them alike, and times them.

Every training runs in a thread of its own and stops at a gate before each step until it is let go, so only one of them
runs at any time. One round is step n of each, in an order drawn anew for every round.

A step is timed from the moment its training is let go until it is back at the gate. That is the whole loop as users run
it (forward and backward pass, clipping, optimizer, scheduler, every callback, fetching the next batch), and none of the
waiting.
"""

from __future__ import annotations

import os
import platform
import random
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

NUM_RESAMPLES = 10_000
PROGRESS_INTERVAL = 50


class Gate(TrainerCallback):
    """Stops a training before every step until it is let go, and times it from there to the next step.

    A Trainer has the gate as a callback; a loop without callbacks calls `pause` itself.
    """

    def __init__(self) -> None:
        self.go = threading.Semaphore(0)
        self.arrived = threading.Semaphore(0)
        self.seconds: list[float] = []
        self._start: float | None = None

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Pauses."""
        self.pause()

    def pause(self) -> None:
        """Stops the clock, waits, and starts it again."""
        now = time.perf_counter()
        if self._start is not None:
            self.seconds.append(now - self._start)
        self.arrived.release()
        self.go.acquire()
        self._start = time.perf_counter()


@dataclass(frozen=True)
class Training:
    """A training that stops at its gate before every step.

    Attributes:
        run: Trains, from the first step to the last.
        gate: What stops it.
    """

    run: Callable[[], Any]
    gate: Gate


class SteppedTraining:
    """A training in a thread of the executor that advances by one step at a time."""

    def __init__(self, training: Training, num_steps: int, executor: ThreadPoolExecutor) -> None:
        self._gate = training.gate
        self._num_steps = num_steps
        self._result: Future[Any] = executor.submit(training.run)
        self._result.add_done_callback(lambda _: self._gate.arrived.release())
        self._wait()

    def step(self) -> None:
        """Runs one step, and returns when the training stands before the next."""
        self._gate.go.release()
        self._wait()

    def finish(self) -> None:
        """Runs what is left of the training."""
        self._gate.go.release(self._num_steps)
        self._result.result()

    def _wait(self) -> None:
        self._gate.arrived.acquire()
        if self._result.done():
            self._result.result()


def interleave(
    trainings: Sequence[Training], *, num_rounds: int, num_dropped: int, num_threads: int, seed: int, name: str
) -> np.ndarray[Any, Any]:
    """Times interleaved steps of several trainings, each of which has `steps_of(...)` steps.

    Args:
        trainings: What is compared.
        num_rounds: How many rounds are kept.
        num_dropped: How many rounds come before those: allocators and caches warm up.
        num_threads: How many threads an operation of torch may use.
        seed: What the order within the rounds is drawn from.
        name: What progress is reported under.

    Returns:
        Seconds of shape (rounds, trainings).
    """
    draw = random.Random(seed)
    num_steps = steps_of(num_rounds, num_dropped)
    # torch keeps the number of threads per calling thread.
    with ThreadPoolExecutor(len(trainings), initializer=torch.set_num_threads, initargs=(num_threads,)) as executor:
        stepped: list[SteppedTraining] = []
        try:
            stepped.extend(SteppedTraining(training, num_steps, executor) for training in trainings)
            for index in range(num_steps - 1):
                if index % PROGRESS_INTERVAL == num_dropped:
                    print(f"{name}: {index - num_dropped} of {num_rounds} rounds", file=sys.stderr)
                for each in draw.sample(stepped, k=len(stepped)):
                    each.step()
        finally:
            for each in stepped:
                each.finish()
    return np.array([training.gate.seconds[num_dropped:] for training in trainings]).T


def steps_of(num_rounds: int, num_dropped: int) -> int:
    """Returns how many steps a training takes: the last one has no next step that would end it."""
    return num_dropped + num_rounds + 1


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval."""

    value: float
    lower: float
    upper: float

    def __format__(self, spec: str) -> str:
        return f"{self.value:{spec}} [{self.lower:{spec}}, {self.upper:{spec}}]"


def estimate(
    ratios: np.ndarray[Any, Any], statistic: Callable[..., np.ndarray[Any, Any]], *, seed: int = 0
) -> Estimate:
    """Computes a statistic of the ratios and its percentile bootstrap interval.

    Args:
        ratios: One ratio per round, of shape (rounds,).
        statistic: Reduces the last axis, given as `axis=`.
        seed: What the resamples are drawn from.
    """
    resamples = np.random.default_rng(seed).choice(ratios, size=(NUM_RESAMPLES, len(ratios)))
    lower, upper = np.percentile(statistic(resamples, axis=-1), [2.5, 97.5])
    return Estimate(float(statistic(ratios, axis=-1)), float(lower), float(upper))


def machine() -> str:
    """Describes the processor, its load, and the versions that decide the speed."""
    processors = Path("/proc/cpuinfo")
    lines = processors.read_text().splitlines() if processors.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor()
    versions = ", ".join(f"{library} {version(library)}" for library in ("torch", "transformers", "accelerate"))
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    return (
        f"{os.cpu_count()} cores ({name}), {platform.system()}, Python {platform.python_version()}, {versions}; load "
        f"averages at the start {load}."
    )
