"""The part of the trainer that tells what a model card says: the plan, what moved when, metrics and costs."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import transformers
from peft import PeftModel
from peft.utils import CONFIG_NAME as ADAPTER_CONFIG_NAME
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer
from transformers.modelcard import TASK_MAPPING

from hf_freeze.config import AdapterConfig, FreezeConfig, LearningRateMultipliers, ScheduleConfig
from hf_freeze.config.writing import plan_to_yaml
from hf_freeze.plan.optimizer import role_multipliers
from hf_freeze.plan.table import plan_table
from hf_freeze.plan.wrappers import unwrap_model
from hf_freeze.training.caching import CachingMixin
from hf_freeze.training.card import CardFacts, Evaluation, shown_place, write_card
from hf_freeze.training.costs import RunCosts, run_costs
from hf_freeze.training.picture import freeze_spans
from hf_freeze.training.record import DELTA_FILE
from hf_freeze.training.reloading import loading_lines

_CARD_SIGNATURE: Final = inspect.signature(Trainer.create_model_card)
_NO_METRICS: Final = ("_runtime", "_per_second", "_preparation_time")


class DescribingMixin(CachingMixin):
    """Writes a card of what was trained, in the place of the Trainer's own.

    Attributes:
        card_facts: What the card tells; None for what the trainer knows by itself.
    """

    card_facts: CardFacts | None = None

    _freeze_section: FreezeConfig | None
    _adapter_entries: tuple[AdapterConfig, ...]
    _schedule_section: ScheduleConfig
    _multipliers: LearningRateMultipliers

    def create_model_card(self, *positional: Any, **keywords: Any) -> None:
        """Writes the card and its picture into the output folder; a trainer class with a card of its own writes that.

        Args:
            positional: As for the Trainer: what the card is to say in the place of what is known.
            keywords: As for the Trainer. Of several tasks and configurations of datasets, the first is named.
        """
        if not self._card_is_the_trainers():
            super().create_model_card(*positional, **keywords)
            return
        given = _CARD_SIGNATURE.bind(self, *positional, **keywords).arguments
        if not self.is_world_process_zero():
            return
        told: dict[str, Any] = {
            "name": given.get("model_name"),
            "language": given.get("language"),
            "license": given.get("license"),
            "tags": _listed(given.get("tags")) or None,
            "base": given.get("finetuned_from"),
            "task": next(iter(_listed(given.get("tasks"))), None),
            "datasets": _listed(given.get("dataset_tags")) or _listed(given.get("dataset")) or None,
            "dataset_config": next(iter(_listed(given.get("dataset_args"))), None),
        }
        facts = self.describe() if self.card_facts is None else self.card_facts
        facts = replace(facts, **{name: value for name, value in told.items() if value is not None})
        write_card(Path(str(self.args.output_dir)), facts)

    def costs(self, seconds: float) -> RunCosts:
        """Returns what training took, in this process.

        Args:
            seconds: How long it took.
        """
        wanted = self._cache_section.enabled is not False and bool(self.plan.frozen_names)
        on_gpu = self.args.device.type == "cuda"
        return run_costs(seconds, self.activation_cache, on_gpu=on_gpu, is_cache_wanted=wanted)

    def describe(self) -> CardFacts:
        """Returns what the trainer knows of its model for a card, once the model is saved in the output folder."""
        folder, state, plan = Path(str(self.args.output_dir)), self.state, self.trained_plan
        inner = unwrap_model(self.model)
        base = inner.get_base_model() if isinstance(inner, PeftModel) else inner
        seconds = [entry["train_runtime"] for entry in state.log_history if "train_runtime" in entry]
        evaluated = tuple(evaluations(state.log_history, "validation"))
        return CardFacts(
            name=folder.resolve().name,
            folder=folder.resolve().name,
            task=task_of(base),
            base=_base_of(base),
            datasets=(),
            plan=plan_to_yaml(
                freeze=self._freeze_section,
                adapters=self._adapter_entries,
                schedule=self._schedule_section,
                lr_multipliers=self._multipliers,
            ),
            table=plan_table(plan, role_multipliers(plan.layout, self._multipliers)),
            spans=freeze_spans(plan, self._frozen_at_first, self.timeline, num_steps=state.global_step),
            changes=(*self._earlier_plan, *(transition.line for transition in self.timeline)),
            num_steps=state.global_step,
            final=evaluated[-1:],
            history=evaluated[:-1],
            costs=self.costs(seconds[-1]).sentences if seconds else (),
            loading=self._public_loading_lines(base, folder),
            has_tokenizer=self._has_tokenizer,
            is_adapter=(folder / ADAPTER_CONFIG_NAME).exists(),
            is_delta=(folder / DELTA_FILE).exists(),
        )

    @property
    def _frozen_at_first(self) -> frozenset[str]:
        treatments = (self.plan if self.scheduled is None else self.scheduled.start).treatments
        return frozenset(role for role, treatment in treatments.items() if treatment == "frozen")

    @property
    def _earlier_plan(self) -> tuple[str, ...]:
        """A sentence on the roles that trained before the run was resumed under this plan, and not since."""
        earlier = set(self.trained_plan.trainable_names) - set(self._trained_since.trainable_names)
        roles = dict.fromkeys(decision.role for decision in self.plan.decisions if decision.name in earlier)
        return (f"before the run was resumed under this plan: {', '.join(roles)} trained",) if roles else ()

    @property
    def _has_tokenizer(self) -> bool:
        return isinstance(self.processing_class, PreTrainedTokenizerBase)

    def _public_loading_lines(self, base: nn.Module, folder: Path) -> tuple[str, ...]:
        """Returns lines that load the model with its class; none where Transformers has no such class."""
        name = type(base).__name__
        if not isinstance(base, PreTrainedModel) or name not in dir(transformers):
            return ()
        return loading_lines(
            str(folder),
            base,
            auto_class=name,
            base=shown_place(_base_of(base)),
            options={},
            has_fresh_parameters=any(decision.parameter.outside_base for decision in self.plan.decisions),
            has_tokenizer=self._has_tokenizer,
            name="repo",
        )

    def _card_is_the_trainers(self) -> bool:
        """Whether no other class writes a card of its own: TRL's name the papers to cite."""
        classes = type(self).__mro__[type(self).__mro__.index(DescribingMixin) + 1 :]
        return next(cls for cls in classes if "create_model_card" in vars(cls)) is Trainer


def task_of(model: nn.Module) -> str | None:
    """Returns the task that a model is for, as the Hub calls it; None where that is not known.

    Args:
        model: The model, without adapters.
    """
    name = type(model).__name__
    mappings: Any = TASK_MAPPING  # Its values have no common type.
    return next((task for task, classes in mappings.items() if name in _names(classes.values())), None)


def evaluations(history: Iterable[Mapping[str, Any]], split: str) -> Iterator[Evaluation]:
    """Yields the evaluations among what was logged.

    Args:
        history: What was logged.
        split: The split that was evaluated on.
    """
    for entry in history:
        if found := with_prefix(entry, "eval"):
            yield Evaluation(split, int(entry["step"]), found)


def with_prefix(metrics: Mapping[str, Any], prefix: str) -> dict[str, float]:
    """Returns the metrics of a model that have a prefix, without it; those of the machine are left out.

    Args:
        metrics: What was logged.
        prefix: Such as `eval`.
    """
    return {
        name.removeprefix(f"{prefix}_"): float(value)
        for name, value in metrics.items()
        if name.startswith(f"{prefix}_") and isinstance(value, int | float) and not name.endswith(_NO_METRICS)
    }


def _names(classes: Iterable[str | Sequence[str]]) -> Iterator[str]:
    for name in classes:
        yield from [name] if isinstance(name, str) else name


def _base_of(model: nn.Module) -> str:
    return (model.name_or_path or "") if isinstance(model, PreTrainedModel) else ""


def _listed(value: str | list[str] | None) -> tuple[str, ...]:
    return () if value is None else (value,) if isinstance(value, str) else tuple(value)
