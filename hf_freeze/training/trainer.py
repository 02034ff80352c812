"""The Trainer that applies a plan and keeps it true; as a mixin for any Trainer, and ready-made.

`class T(FreezeMixin, SFTTrainer)` works as `FreezeTrainer` does.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from transformers import Seq2SeqTrainer, Trainer, TrainingArguments
from transformers.trainer_optimizer import is_optimizer_factory
from transformers.training_args import OptimizerNames

from hf_freeze.config import (
    ActivationCacheConfig,
    AdapterConfig,
    FreezeConfig,
    LearningRateMultipliers,
    SaveConfig,
    ScheduleConfig,
    parse_adapters,
    parse_section,
)
from hf_freeze.errors import PlanError
from hf_freeze.plan.apply import apply_plan
from hf_freeze.plan.optimizer import parameter_groups, role_multipliers
from hf_freeze.plan.wrappers import reshard, unwrap_model
from hf_freeze.training.backends import check_backend, shard_by_block
from hf_freeze.training.callbacks import AuditCallback, LearningRateCallback
from hf_freeze.training.choosing import ChoosingMixin
from hf_freeze.training.controller import Controller
from hf_freeze.training.describing import DescribingMixin
from hf_freeze.training.earlier import StartCallback
from hf_freeze.training.loop import LoopMixin
from hf_freeze.training.loss import count_items, loss_responds, scale_loss
from hf_freeze.training.resuming import CheckpointMixin
from hf_freeze.training.saving import check_saving
from hf_freeze.training.watching import WatchingMixin

logger = logging.getLogger(__name__)


class FreezeMixin(WatchingMixin, DescribingMixin, ChoosingMixin, LoopMixin, CheckpointMixin):
    """Adds a freeze plan to a `Trainer` class; list it first among the bases.

    Args:
        model: The model, without adapters where `adapters` are given; left out where `model_init` makes it.
        args: As for the Trainer.
        positional: The Trainer's further positional arguments.
        freeze: The `freeze` section: a mapping such as `{"blocks": {"first": 8}}`, or an instance.
        adapters: Entries of one PEFT method: mappings with `peft_type`, or PEFT config objects.
        schedule: The `schedule` section, such as `{"type": "progressive"}`; left out, the plan stays as it is.
        lr_multipliers: The `lr_multipliers` section: factors on the learning rate.
        activation_cache: The `activation_cache` section: a mapping such as `{"enabled": False}`, or an instance.
        save: The `save` section: a mapping such as `{"format": "delta"}`, or an instance.
        base_revision: Revision on the Hub that the model was loaded from, where one was named; a delta needs it.
        blocks_path: Path of the `nn.ModuleList` that holds the blocks, where it cannot be found by itself.
        allow_changed_plan: Whether a checkpoint of another plan may be resumed; its optimizer state is then left out.
        keywords: The Trainer's further keyword arguments.

    Raises:
        ConfigError: A section cannot be read; every problem is listed.
        LayoutError: The blocks of the model cannot be found.
        PlanError: The request does not fit the model or the training arguments.
        CacheError: `activation_cache.enabled` is true, and the plan leaves nothing to cache.
    """

    def __init__(
        self,
        model: Any = None,
        args: Any = None,
        *positional: Any,
        freeze: FreezeConfig | Mapping[str, object] | None = None,
        adapters: Iterable[AdapterConfig | Mapping[str, object] | object] = (),
        schedule: ScheduleConfig | Mapping[str, object] | None = None,
        lr_multipliers: LearningRateMultipliers | Mapping[str, object] | None = None,
        activation_cache: ActivationCacheConfig | Mapping[str, object] | None = None,
        save: SaveConfig | Mapping[str, object] | None = None,
        base_revision: str | None = None,
        blocks_path: str | None = None,
        allow_changed_plan: bool = False,
        **keywords: Any,
    ) -> None:
        self._schedule_section = parse_section(ScheduleConfig, schedule or {}, key="schedule")
        self._seed = TrainingArguments.seed if args is None else args.seed
        self._freeze_section = None if freeze is None else parse_section(FreezeConfig, freeze, key="freeze")
        self._adapter_entries = tuple(parse_adapters(adapters))
        self._blocks_path = blocks_path
        self._multipliers = parse_section(LearningRateMultipliers, lr_multipliers or {}, key="lr_multipliers")
        self._cache_section = parse_section(ActivationCacheConfig, activation_cache or {}, key="activation_cache")
        self._save_section = parse_section(SaveConfig, save or {}, key="save")
        self._base_revision = base_revision
        self._has_multipliers = self._multipliers != LearningRateMultipliers()
        self._allow_changed_plan = allow_changed_plan
        self._loss_responds: bool | None = None
        self._check_request(model, keywords)
        super().__init__(self._freeze(model) if model is not None else None, args, *positional, **keywords)
        self._choose()
        check_backend(self.args, self.accelerator.state, self.plan, changes=self.scheduled is not None)
        check_saving(unwrap_model(self.model), self.union_plan, self._save_section)
        shard_by_block(self.accelerator.state, self.model, self.plan)
        self.audit = AuditCallback(self)
        self.add_callback(self.audit)
        self.add_callback(StartCallback(self))
        self._rates = LearningRateCallback()
        if self._has_groups:
            self.add_callback(self._rates)
        if self.scheduled is not None:
            self._controller = Controller(self)
            self.add_callback(self._controller)
        self._start_caching()

    @property
    def _has_groups(self) -> bool:
        """Whether every role has parameter groups of its own."""
        return self._has_multipliers or self._schedule_section.type != "static"

    @property
    def _groups_key(self) -> str:
        """The section that asks for groups."""
        return "lr_multipliers" if self._has_multipliers else "schedule"

    def _check_request(self, model: Any, keywords: Mapping[str, Any]) -> None:
        if isinstance(model, str):
            raise PlanError(
                f"model: a plan needs the model itself; got {model!r}. {type(self).__name__} freezes the model before "
                "training. Load it with from_pretrained and pass it."
            )
        if keywords.get("peft_config") is not None and self._adapter_entries:
            raise PlanError(
                "peft_config: adapters are given twice; got peft_config= beside adapters=. adapters= takes PEFT config "
                "objects. Move the object there."
            )
        if self._has_groups and keywords.get("optimizers", (None, None))[0] is not None:
            key = self._groups_key
            raise PlanError(
                f"{key}: an optimizer that is passed in has its own learning rates; got optimizers= beside "
                f"{key}=. Leave one of them out."
            )

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """Makes the model anew and freezes it: `train()` makes one on every call, free of any plan."""
        self._trained_before = frozenset()
        return self._freeze(super().call_model_init(trial))

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Makes the optimizer from the parameters that may train, in one pair of groups, or one pair per role.

        Args:
            model: The model to optimise, where it differs from `self.model`.

        Raises:
            PlanError: Multipliers are given for an optimizer that makes its own groups.
        """
        target = self.model if model is None else model
        apply_plan(target, self.union_plan)
        if self.optimizer is None and self._has_groups:
            self.optimizer = self._grouped_optimizer(target)
        return super().create_optimizer(model)

    def _grouped_optimizer(self, target: nn.Module) -> torch.optim.Optimizer:
        optimizer_class, options = self.optimizer_cls_and_kwargs or self.get_optimizer_cls_and_kwargs(
            self.args, self.model
        )
        if {"params", "model", "optimizer_dict"} & options.keys() or is_optimizer_factory(optimizer_class):
            raise PlanError(
                f"{self._groups_key}: this optimizer makes its own parameter groups; got optim "
                f"{OptimizerNames(self.args.optim).value!r}. AdamW, SGD and Adafactor take groups, for example. "
                f"Choose one of them, or remove {self._groups_key}."
            )
        groups = parameter_groups(
            target,
            self.union_plan,
            factors=role_multipliers(self.plan.layout, self._multipliers),
            decayed_names=set(self.get_decay_parameter_names(target)),
            learning_rate=options.get("lr", self.args.learning_rate),
            weight_decay=self.args.weight_decay,
        )
        optimizer: torch.optim.Optimizer = optimizer_class(groups, **options)
        return optimizer

    def log(self, logs: dict[str, float], *positional: Any, **keywords: Any) -> None:
        """Logs, beside what the Trainer logs, the learning rate of every role where they differ.

        Args:
            logs: The values; with multipliers, `learning_rate` becomes the rate of a factor of 1.
            positional: As for the Trainer.
            keywords: As for the Trainer.
        """
        if "learning_rate" in logs and self._rates.rates:
            factors = role_multipliers(self.plan.layout, self._multipliers)
            role, rate = self._rates.unscaled
            logs["learning_rate"] = rate / factors[role]
            scaled = frozenset() if self._controller is None else self._controller.scaled_roles
            told = {
                f"learning_rate/{role}" for role in self.plan.trainable_roles if self._has_multipliers or role in scaled
            }
            logs.update({name: rate for name, rate in self._rates.rates.items() if name in told})
        super().log(logs, *positional, **keywords)

    def evaluation_loop(self, *positional: Any, **keywords: Any) -> Any:
        """Evaluates or predicts as the Trainer does, and leaves the weights as sharded as it found them.

        Args:
            positional: As for the Trainer.
            keywords: As for the Trainer.
        """
        output = super().evaluation_loop(*positional, **keywords)
        reshard(self.model)
        if not self.is_in_train:
            self.activation_cache.close()
        return output

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
        **keywords: Any,
    ) -> Any:
        """Computes the loss as the Trainer does, at the right scale for models that ignore `num_items_in_batch`.

        Args:
            model: The model as the training loop calls it.
            inputs: The batch.
            return_outputs: Whether to return the model's outputs too.
            num_items_in_batch: The number of labels in the whole batch, over micro-batches and processes.
            keywords: As for the Trainer.

        Returns:
            The loss, of shape (), or the loss and the outputs.
        """
        share = self._share_of_items(model, inputs, num_items_in_batch)
        result: Any = super().compute_loss(
            model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch, **keywords
        )
        if share is None:
            return result
        return (scale_loss(result[0], share), result[1]) if return_outputs else scale_loss(result, share)

    def _share_of_items(
        self, model: nn.Module, inputs: Mapping[str, Any], num_items: torch.Tensor | int | None
    ) -> torch.Tensor | None:
        """Returns the share of the batch's items that lies in `inputs`, or None where the scale is right already."""
        if num_items is None or not self.model_accepts_loss_kwargs or not self._loss_is_the_trainers():
            return None
        if self._loss_responds is None and bool((torch.as_tensor(num_items) > 0).all()):
            self._loss_responds = loss_responds(model, inputs, num_items)
        if self._loss_responds is not False:
            return None
        # Under DataParallel the count is repeated, and the Trainer multiplies the loss, once per GPU.
        whole = torch.as_tensor(num_items).reshape(-1)[0] * max(1, self.args.n_gpu)
        share: torch.Tensor = count_items(inputs, shifted=self._loss_shifts_labels) / whole
        return share

    def _loss_is_the_trainers(self) -> bool:
        """Whether no other class and no other function computes the loss: they normalise it in their own way."""
        classes = type(self).__mro__[type(self).__mro__.index(FreezeMixin) + 1 :]
        computing = next(cls for cls in classes if "compute_loss" in vars(cls))
        return computing is Trainer and self.compute_loss_func is None and self.label_smoother is None


class FreezeTrainer(FreezeMixin, Trainer):
    """`transformers.Trainer` with a freeze plan."""


class FreezeSeq2SeqTrainer(FreezeMixin, Seq2SeqTrainer):
    """`transformers.Seq2SeqTrainer` with a freeze plan."""
