"""Compares what is learned and predicted from a cache in half precision with what is without the cache.

All runs of one seed start from the same weights and see the same rows in the same order with the same dropout:

- `trained`: trained and evaluated from the cache, against the same without it.
- `same weights`: the model that was trained without the cache, evaluated with it, against without it.
- `perturbed`: trained without the cache, while the prefix's output moves at random by as much as rounding moves it at
  most, against without. It shows what training makes of any disturbance of this size.
- `another seed`: trained without the cache, in another order and with other dropout, against the first.
- `autocast`: trained without the cache under bfloat16 autocast, against in float32.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import DataCollatorWithPadding, PrinterCallback

from benchmarks.contenders import Reviews, training_arguments
from benchmarks.reviews import load_minilm, review_rows
from benchmarks.whole_runs import table_head, table_row
from hf_freeze import FreezeTrainer

# Rounding to the nearest moves a number by at most this share of it: half the distance of 1 to the next number.
ROUNDING = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
# Added to the seed of the order and of dropout, where they shall be others.
_ANOTHER = 1000
_Found = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One training run.

    Attributes:
        seed: Of the head, the order of the rows and dropout.
        stored: What the cache stores, as in its section; None where there is no cache.
        autocast: Whether it trains under bfloat16 autocast.
        perturbed: A dtype whose rounding the prefix's output is perturbed by; None leaves it alone.
        is_other: Whether order and dropout are others.
    """

    seed: int
    stored: str | None = None
    autocast: bool = False
    perturbed: str | None = None
    is_other: bool = False

    @property
    def name(self) -> str:
        """What the job is kept under."""
        what = "another seed" if self.is_other else f"perturbed {self.perturbed}" if self.perturbed else self.stored
        return f"{self.seed} {'autocast' if self.autocast else 'float32'} {what or 'uncached'}"


@dataclass(frozen=True)
class Difference:
    """How far the logits of two models are apart on the same rows.

    Attributes:
        largest: The largest difference of a logit, as a share of the standard deviation of the logits.
        mean: The mean of the differences, as such a share.
        loss: The difference of the losses.
        same: The share of rows with the same prediction.
    """

    largest: float
    mean: float
    loss: float
    same: float


def jobs_of(seed: int, storages: Sequence[str]) -> list[Job]:
    """Returns the runs of one seed.

    Args:
        seed: The seed.
        storages: Which of `float16`, `bfloat16` and `autocast` are looked at.
    """
    jobs: list[Job] = []
    if halves := [storage for storage in storages if storage in ROUNDING]:
        jobs += [Job(seed), Job(seed, is_other=True)]
        jobs += [Job(seed, stored=storage) for storage in halves]
        jobs += [Job(seed, perturbed=storage) for storage in halves]
    if "autocast" in storages:
        jobs += [Job(seed, autocast=True), Job(seed, autocast=True, stored="auto")]
    return jobs


def difference(one: _Found, other: _Found) -> Difference:
    """Compares two models.

    Args:
        one: Logits of shape (rows, classes), and their loss.
        other: Those of the model that it is compared with.
    """
    first, second = np.array(one["logits"]), np.array(other["logits"])
    apart = np.abs(first - second) / second.std()
    same = float((first.argmax(axis=1) == second.argmax(axis=1)).mean())
    return Difference(float(apart.max()), float(apart.mean()), abs(one["loss"] - other["loss"]), same)


@contextlib.contextmanager
def perturbed(block: torch.nn.Module, size: float, *, seed: int) -> Iterator[None]:
    """Has a block return its output with each number moved at random.

    Args:
        block: The last block of the prefix.
        size: By which share of itself a number is moved at most.
        seed: What it is drawn from.
    """
    generator = torch.Generator().manual_seed(seed)

    def move(module: torch.nn.Module, args: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        moved = hidden * (1 + size * (2 * torch.rand(hidden.shape, generator=generator) - 1))
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    handle = block.register_forward_hook(move)
    try:
        yield
    finally:
        handle.remove()


def _trainer(
    job: Job, reviews: Reviews, options: argparse.Namespace, folder: Path, *, stored: str | None
) -> FreezeTrainer:
    args = training_arguments(
        folder,
        batch_size=options.batch_size,
        seed=job.seed + _ANOTHER * job.is_other,
        num_train_epochs=options.epochs,
        bf16=job.autocast,
    )
    section = {"enabled": False} if stored is None else {"enabled": True, "dir": str(folder / "cache"), "dtype": stored}
    trainer = FreezeTrainer(
        copy.deepcopy(reviews.model),
        args,
        train_dataset=reviews.train,
        eval_dataset=reviews.validation,
        data_collator=DataCollatorWithPadding(reviews.tokenizer),
        freeze={"blocks": {"first": options.depth}},
        activation_cache=section,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def carry_out(job: Job, reviews: Reviews, options: argparse.Namespace) -> dict[str, _Found]:
    """Trains, and returns logits and loss on the rows to evaluate on, by the name of what gave them.

    Args:
        job: What to train; without the cache, the trained model is evaluated from the caches of `--storages` as well.
        reviews: The model as it starts, and the rows.
        options: Those of the command line.
    """
    with tempfile.TemporaryDirectory(dir=options.folder) as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        trainer = _trainer(job, reviews, options, folder, stored=job.stored)
        if job.perturbed is not None:
            block = trainer.model.bert.encoder.layer[options.depth - 1]
            stack.enter_context(perturbed(block, ROUNDING[job.perturbed], seed=job.seed))
        trainer.train()
        found = {job.name: _predicted(trainer)}
        if job.stored is None and job.perturbed is None and not job.is_other:
            trained = replace(reviews, model=trainer.model)
            for stored in ["auto"] if job.autocast else [each for each in options.storages if each in ROUNDING]:
                again = _trainer(job, trained, options, folder, stored=stored)
                found[f"{job.name}, evaluated {stored}"] = _predicted(again)
        return found


def _predicted(trainer: FreezeTrainer) -> _Found:
    output = trainer.predict(trainer.eval_dataset)
    return {"logits": np.asarray(output.predictions, dtype=float).tolist(), "loss": output.metrics["test_loss"]}


def precision_lines(options: argparse.Namespace) -> list[str]:
    """Returns the tables of `precision`."""
    kept: Path | None = options.results
    found: dict[str, _Found] = json.loads(kept.read_text()) if kept is not None and kept.exists() else {}
    jobs = [job for seed in options.seeds for job in jobs_of(seed, options.storages) if job.name not in found]
    jobs.sort(key=lambda job: job.is_other or job.perturbed is not None)  # What others are compared with comes first.
    for job in jobs[: options.jobs]:
        model, tokenizer = load_minilm(seed=job.seed)
        train, validation = (
            review_rows(tokenizer, split, num_rows=num_rows, max_length=options.max_length, seed=options.seed)
            for split, num_rows in (("train", options.rows), ("validation", options.evaluation_rows))
        )
        found |= carry_out(job, Reviews(model, tokenizer, train, validation), options)
        if kept is not None:
            kept.write_text(json.dumps(found))
    lines = [
        (
            f"k = {options.depth}, {options.rows} rows to train on, {options.evaluation_rows} to evaluate on, "
            f"{options.epochs} epochs, seeds {', '.join(map(str, options.seeds))}."
        ),
        "",
        *table_head(["stored", "compared", "largest", "mean", "loss", "same predictions, by seed", "together"]),
    ]
    for stored, what, pairs in _compared(options.storages, options.seeds):
        done = [(one, other) for one, other in pairs if one in found and other in found]
        lines += _row(stored, what, [difference(found[one], found[other]) for one, other in done])
    return lines


def _compared(storages: Sequence[str], seeds: Sequence[int]) -> Iterator[tuple[str, str, list[tuple[str, str]]]]:
    """Yields what is stored, what is compared, and the names of both sides for every seed."""
    for stored in (each for each in storages if each in ROUNDING):
        plain = "float32 uncached"
        yield stored, "trained", [(f"{seed} float32 {stored}", f"{seed} {plain}") for seed in seeds]
        yield stored, "same weights", [(f"{s} {plain}, evaluated {stored}", f"{s} {plain}") for s in seeds]
        yield stored, "perturbed", [(f"{seed} float32 perturbed {stored}", f"{seed} {plain}") for seed in seeds]
    if "autocast" in storages:
        plain = "autocast uncached"
        yield "auto, autocast", "trained", [(f"{seed} autocast auto", f"{seed} {plain}") for seed in seeds]
        yield "auto, autocast", "same weights", [(f"{s} {plain}, evaluated auto", f"{s} {plain}") for s in seeds]
    if set(storages) & set(ROUNDING):
        yield "nothing", "another seed", [(f"{s} float32 another seed", f"{s} float32 uncached") for s in seeds]
        if "autocast" in storages:
            yield "nothing", "autocast", [(f"{s} autocast uncached", f"{s} float32 uncached") for s in seeds]


def _row(stored: str, what: str, differences: Sequence[Difference]) -> list[str]:
    if not differences:
        return []
    figures = [
        f"{max(each.largest for each in differences):.2g}",
        f"{np.mean([each.mean for each in differences]):.2g}",
        f"{max(each.loss for each in differences):.2g}",
        ", ".join(f"{100 * each.same:.1f}" for each in differences),
        f"{100 * np.mean([each.same for each in differences]):.2f} %",
    ]
    return [table_row([stored, what, *figures])]
