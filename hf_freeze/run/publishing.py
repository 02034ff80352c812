"""What the card of a run tells, taken from its config, its plan and what it measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hf_freeze.config import RunConfig
from hf_freeze.training.card import CardFacts, Evaluation, shown_place
from hf_freeze.training.describing import evaluations, with_prefix


def card_facts(
    config: RunConfig,
    described: CardFacts,
    *,
    metrics: Mapping[str, float],
    history: Iterable[Mapping[str, Any]],
    splits: Mapping[str, str],
    costs: tuple[str, ...],
    loading: tuple[str, ...],
) -> CardFacts:
    """Returns what a card tells.

    Args:
        config: The config of the run.
        described: What the trainer tells.
        metrics: The metrics at the end, as `eval_...` and `test_...`.
        history: What was logged while training, evaluations with `eval_...` among it.
        splits: `validation` and `test`, each with its name in the dataset.
        costs: What it took, a sentence each.
        loading: Lines of Python that load the model from `repo`.
    """
    ends = {"eval": splits.get("validation", "validation"), "test": splits.get("test", "test")}
    final = tuple(
        Evaluation(split, described.num_steps, found)
        for prefix, split in ends.items()
        if (found := with_prefix(metrics, prefix))
    )
    while_training = (entry for entry in history if entry.get("step", 0) < described.num_steps)
    return replace(
        described,
        task=config.model.task,
        base=config.model.name_or_path,
        datasets=(str(config.data.load_dataset["path"]),),
        final=final,
        history=tuple(evaluations(while_training, ends["eval"])),
        costs=costs,
        loading=loading,
        has_tokenizer=True,
    )


def public_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns arguments of `from_pretrained` for a card, without places on this machine.

    Args:
        options: The arguments.
    """
    kept = {name: value for name, value in options.items() if name != "cache_dir"}
    return {name: shown_place(value) if _is_path(value) else value for name, value in kept.items()}


def _is_path(value: object) -> bool:
    return isinstance(value, str) and Path(value).is_absolute()
