"""What the card of a run tells, taken from its config, its plan and what it measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hf_freeze.config import RunConfig
from hf_freeze.config.writing import plan_to_yaml
from hf_freeze.plan.table import PlanTable
from hf_freeze.sharing.card import CardFacts, Evaluation, shown_place

_NO_METRICS = ("_runtime", "_per_second", "_preparation_time")


def card_facts(
    config: RunConfig,
    table: PlanTable,
    *,
    num_steps: int,
    metrics: Mapping[str, float],
    history: Iterable[Mapping[str, Any]],
    splits: Mapping[str, str],
    costs: tuple[str, ...],
    loading: tuple[str, ...],
) -> CardFacts:
    """Returns what a card tells.

    Args:
        config: The config of the run.
        table: The plan, role by role.
        num_steps: The number of steps that were made.
        metrics: The metrics at the end, as `eval_...` and `test_...`.
        history: What was logged while training, evaluations with `eval_...` among it.
        splits: `validation` and `test`, each with its name in the dataset.
        costs: What it took, a sentence each.
        loading: Lines of Python that load the model from `repo`.
    """
    ends = {"eval": splits.get("validation", "validation"), "test": splits.get("test", "test")}
    final = tuple(
        Evaluation(split, num_steps, found)
        for prefix, split in ends.items()
        if (found := _with_prefix(metrics, prefix))
    )
    folder = Path(str(config.training["output_dir"]))
    return CardFacts(
        name=folder.resolve().name,
        task=config.model.task,
        base=config.model.name_or_path,
        dataset=str(config.data.load_dataset["path"]),
        plan=plan_to_yaml(config),
        table=table,
        num_steps=num_steps,
        final=final,
        history=tuple(_evaluations(history, ends["eval"], before=num_steps)),
        costs=costs,
        loading=loading,
        is_adapter=(folder / "adapter_config.json").exists(),
        is_delta=(folder / "hf_freeze_delta.json").exists(),
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


def _evaluations(history: Iterable[Mapping[str, Any]], split: str, *, before: int) -> Iterator[Evaluation]:
    """Yields the evaluations while training; the one after the last step stands among those at the end."""
    for entry in history:
        if (found := _with_prefix(entry, "eval")) and entry["step"] < before:
            yield Evaluation(split, int(entry["step"]), found)


def _with_prefix(metrics: Mapping[str, Any], prefix: str) -> dict[str, float]:
    return {
        name.removeprefix(f"{prefix}_"): float(value)
        for name, value in metrics.items()
        if name.startswith(f"{prefix}_") and not name.endswith(_NO_METRICS)
    }
