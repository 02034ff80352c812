"""One training run, described as plain data, so that any number of processes can be told to make the same one.

The global batch is eight rows whatever the number of processes and of micro-batches: the runs must be equal.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from transformers import AutoModelForTokenClassification, PreTrainedModel

from hf_freeze.errors import PlanError
from hf_freeze.insight.monitor import MonitorCallback
from hf_freeze.plan import named_parameters
from hf_freeze.plan.audit import tensor_digest
from hf_freeze.training import FreezeTrainer
from tests.tiny import tiny_batch, tiny_bert, tiny_llama
from tests.unit.training.runs import arguments, logged, monitored, rows

GLOBAL_BATCH = 8
NUM_ROWS = 96
NUM_EVALUATED = 32


@dataclasses.dataclass(frozen=True)
class Run:
    """What to train and how.

    Attributes:
        name: The name of the run, and of its folder.
        model: "classifier", "language", "tokens", or "few tokens", where half of the rows have no label at all.
        keywords: Keyword arguments of `FreezeTrainer`.
        options: Training arguments beside the usual ones.
        num_steps: Optimizer steps.
        accumulation: Micro-batches per optimizer step and process.
        dropout: Probability of the model's dropouts.
        resumed_at: Step of the checkpoint that a second trainer resumes from, or None for no second trainer.
        monitored_every: Steps from one measurement of the monitor to the next, or None for no monitor.
    """

    name: str
    model: str = "classifier"
    keywords: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    num_steps: int = 20
    accumulation: int = 1
    dropout: float = 0.0
    resumed_at: int | None = None
    monitored_every: int | None = None


@dataclasses.dataclass(frozen=True)
class Record:
    """What one process saw of a run.

    Attributes:
        losses: The loss of every step.
        gradient_norms: The gradient norm of every step.
        evaluations: Every evaluation loss.
        moved: Canonical names of the parameters that moved.
        frozen: Canonical names of the frozen parameters.
        trained: Canonical names of the parameters that train.
        weights: Digests of the parameters at the end, by canonical name.
        resumed_losses: The losses of the resumed run, after the checkpoint.
        resumed_weights: Digests of the parameters at the end of the resumed run.
        logits: What the trained model makes of `tiny_batch()`.
        share: The part of the weights that this process keeps.
        refusal: Why the checkpoint is not resumed with three frozen blocks.
        monitored: What the monitor logged, with the step.
        resumed_monitored: What the monitor of the resumed run logged after the checkpoint.
    """

    losses: list[float]
    gradient_norms: list[float]
    evaluations: list[float]
    moved: list[str]
    frozen: list[str]
    trained: list[str]
    weights: dict[str, str]
    resumed_losses: list[float]
    resumed_weights: dict[str, str]
    logits: list[Any]
    share: float
    refusal: str
    monitored: list[dict[str, float]]
    resumed_monitored: list[dict[str, float]]


def carry_out(run: Run, folder: Path, *, num_processes: int) -> Record:
    """Trains, resumes if asked to, saves the model to `folder / "model"`, and returns what was seen.

    Args:
        run: What to train and how.
        folder: Where this run may write; the same for every process.
        num_processes: How many processes carry the run out together.
    """
    trainer = _trainer(run, folder, num_processes)
    before = _digests(trainer.model)
    trainer.train()
    plan, after = trainer.plan, _digests(trainer.model)
    share = _count(trainer.model) / sum(decision.parameter.numel for decision in plan.decisions)
    trainer.save_model(str(folder / "model"))
    trainer.model.eval()
    with torch.no_grad():
        logits = trainer.model(**tiny_batch()).logits
    resumed_losses: list[float] = []
    resumed_weights: dict[str, str] = {}
    refusal = ""
    resumed_monitored: list[dict[str, float]] = []
    if run.resumed_at is not None:
        resumed = _trainer(run, folder, num_processes)
        resumed.train(resume_from_checkpoint=str(folder / f"checkpoint-{run.resumed_at}"))
        resumed_losses, resumed_weights = logged(resumed, "loss")[run.resumed_at :], _digests(resumed.model)
        resumed_monitored = [entry for entry in monitored(resumed) if entry["step"] > run.resumed_at]
        changed = dataclasses.replace(run, keywords={**run.keywords, "freeze": {"blocks": {"first": 3}}})
        try:
            _trainer(changed, folder, num_processes).train(str(folder / f"checkpoint-{run.resumed_at}"))
        except PlanError as error:
            refusal = str(error)
    return Record(
        losses=logged(trainer, "loss"),
        gradient_norms=logged(trainer, "grad_norm"),
        evaluations=logged(trainer, "eval_loss"),
        moved=[name for name in after if after[name] != before[name]],
        frozen=list(plan.frozen_names),
        trained=list(plan.trainable_names),
        weights=after,
        resumed_losses=resumed_losses,
        resumed_weights=resumed_weights,
        logits=logits.tolist(),
        share=share,
        refusal=refusal,
        monitored=monitored(trainer),
        resumed_monitored=resumed_monitored,
    )


def _trainer(run: Run, folder: Path, num_processes: int) -> FreezeTrainer:
    options: dict[str, Any] = {
        "max_steps": run.num_steps,
        "per_device_train_batch_size": GLOBAL_BATCH // num_processes // run.accumulation,
        "per_device_eval_batch_size": GLOBAL_BATCH // num_processes,
        "gradient_accumulation_steps": run.accumulation,
        "eval_strategy": "steps",
        "eval_steps": run.num_steps // 2,
    }
    if run.resumed_at is not None:
        options |= {"save_strategy": "steps", "save_steps": run.resumed_at}
    dataset = _rows(run.model)
    return FreezeTrainer(
        _model(run),
        arguments(folder, **options, **run.options),
        train_dataset=dataset,
        eval_dataset=dataset.select(range(NUM_EVALUATED)),
        callbacks=[] if run.monitored_every is None else [MonitorCallback(run.monitored_every)],
        **run.keywords,
    )


def _model(run: Run) -> PreTrainedModel:
    if run.model == "language":
        return tiny_llama(attention_dropout=run.dropout)
    dropouts = {"hidden_dropout_prob": run.dropout, "attention_probs_dropout_prob": run.dropout}
    classifier = tiny_bert(**dropouts)
    if run.model == "classifier":
        return classifier
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tagger: PreTrainedModel = AutoModelForTokenClassification.from_config(classifier.config)
    return tagger


def _rows(model: str) -> Dataset:
    if "tokens" not in model:
        return rows(NUM_ROWS, labels="words" if model == "language" else "classes")
    draw = random.Random(0)
    dataset = rows(NUM_ROWS)
    labels = [
        [draw.randrange(2) if position < count else -100 for position in range(len(words))]
        for words in dataset["input_ids"]
        for count in [draw.randint(1, len(words)) if model == "tokens" else draw.choice([0, len(words)])]
    ]
    return dataset.remove_columns("labels").add_column("labels", labels)


def _count(model: nn.Module) -> int:
    """How many weights this process keeps."""
    return sum((p.to_local() if isinstance(p, DTensor) else p).numel() for _, p in named_parameters(model))


def _digests(model: nn.Module) -> dict[str, str]:
    """Digests of the whole parameters, gathered where they are sharded, by canonical name."""
    with FullyShardedDataParallel.summon_full_params(model, writeback=False):
        return {
            name: tensor_digest(p.full_tensor() if isinstance(p, DTensor) else p.detach().clone())
            for name, p in named_parameters(model)
        }
