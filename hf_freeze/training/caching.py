"""The part of the trainer that serves batches from the activation cache, over public seams of `Trainer` only.

`on_train_begin` finds the model wrapped and the checkpoint loaded, so that what is cached there is what training sees.
`training_step` and `prediction_step` take the keys out of the batch before anything else reads it.
"""

from __future__ import annotations

import contextlib
import copy
import math
import weakref
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import (
    PreTrainedTokenizerBase,
    ProcessorMixin,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import EvalLoopOutput, IntervalStrategy, align_special_tokens

from hf_freeze.activation_cache.building import is_quicker_before, reason_of_cost
from hf_freeze.activation_cache.cache import ActivationCache
from hf_freeze.activation_cache.checks import reason_of_plan
from hf_freeze.activation_cache.collator import KeyCollator
from hf_freeze.activation_cache.comparing import Loss
from hf_freeze.activation_cache.keys import KEYS
from hf_freeze.activation_cache.outputs import CacheStats
from hf_freeze.activation_cache.processes import all_agree, first_reason
from hf_freeze.activation_cache.rows import Amount, Rows, Survey, kept_random_state
from hf_freeze.activation_cache.shelf import Shelf
from hf_freeze.config import ActivationCacheConfig
from hf_freeze.plan.resolve import FreezePlan
from hf_freeze.training.scheduling import SchedulingMixin

# No batch is padded to more than so many times the length of its rows.
_WIDEST = 1000


class CachingMixin(SchedulingMixin):
    """Trains, evaluates and predicts from the activation cache where it holds and pays.

    Attributes:
        activation_cache: The cache of the current model.
    """

    activation_cache: ActivationCache
    _cache_section: ActivationCacheConfig

    def _start_caching(self) -> None:
        """Makes the cache, and has the collator add keys; called when the Trainer has been made.

        Raises:
            CacheError: `enabled` is true, and the plan leaves nothing to cache.
        """
        self.activation_cache = self._new_cache()
        reason = reason_of_plan(self.plan)
        # A schedule may bring a prefix that can be cached later; dropout that is kept stays in it.
        if reason is not None and (self.scheduled is None or self.plan.keep_dropout):
            self.activation_cache.turn_off(reason)
        elif self._cache_section.enabled is not False:
            self.data_collator = KeyCollator(self.data_collator, self.activation_cache.unkeyed)
            self.add_callback(CacheCallback(self))

    def _restart_caching(self) -> None:
        """Makes the cache anew for another plan."""
        self.activation_cache.close()
        if isinstance(self.data_collator, KeyCollator):
            self.activation_cache = self._new_cache()
        else:
            self._start_caching()

    def _new_cache(self) -> ActivationCache:
        return ActivationCache(
            self.model_wrapped, self.plan, self._cache_section, label_names=self.label_names, loss=self._own_loss()
        )

    def _own_loss(self) -> Loss | None:
        """Returns what computes the loss where it is not the model, or None."""
        computing = [cls for cls in type(self).__mro__ if "compute_loss" in vars(cls)]
        # The mixin's corrects the scale of what the Trainer's takes from the model.
        if len(computing) <= 2 and self.compute_loss_func is None:
            return None
        # A cycle would keep it, and its dataloader workers, until a collection.
        trainer: Any = weakref.ref(self)

        def loss(model: nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
            # On a copy: trainers count what they have computed the loss of.
            computed: torch.Tensor = copy.copy(trainer()).compute_loss(model, inputs)
            return computed

        return loss

    def move_activation_cache(self, before: FreezePlan, train_dataloader: DataLoader[Any] | None) -> None:
        """Has the cache follow a change of freeze state.

        What was stored stays on the disk: rows of a deeper prefix are computed from it, and a prefix that comes again
        with the same weights finds its rows.

        Args:
            before: The plan as it was.
            train_dataloader: The loader that training uses.

        Raises:
            CacheError: `enabled` is true, and the cache does not hold or does not fit.
        """
        cache = self.activation_cache
        never_on = not isinstance(self.data_collator, KeyCollator)
        if self.plan.depth == before.depth or train_dataloader is None or never_on:
            cache.plan = self.plan
            return
        self.prepare_activation_cache(train_dataloader, stats=cache.stats)

    def prepare_activation_cache(self, train_dataloader: DataLoader[Any], *, stats: CacheStats | None = None) -> None:
        """Decides whether the cache is used, and builds it; called when training begins and when the depth changes.

        Args:
            train_dataloader: The loader that training will use.
            stats: Where to go on counting; anew where it is left out.

        Raises:
            CacheError: `enabled` is true, and the cache does not hold or does not fit.
        """
        self.activation_cache.close()
        cache = self.activation_cache = self._new_cache()
        cache.stats = cache.stats if stats is None else stats
        if self.scheduled is not None and self.plan.depth == 0:
            # Not an error where the cache is asked for: the schedule may freeze blocks later.
            cache.is_decided, cache.reason = True, reason_of_plan(self.plan)
        elif (reason := self._reason_of_backend() or self._reason_without_looking(cache, train_dataloader)) is not None:
            cache.turn_off(reason)
        elif cache.prepare_from(train_dataloader):
            self._build(cache, train_dataloader)
        if isinstance(self.data_collator, KeyCollator):
            # Workers copy the collator when an epoch begins, and the cache may come on before the next one.
            self.data_collator.adds_keys = cache.is_on or self.scheduled is not None

    def fill_activation_cache(self) -> None:
        """Stores the rows of training and evaluation before training, whether or not this run alone needs them again.

        Random state is as before afterwards.

        Raises:
            CacheError: `enabled` is true, and the cache does not hold or does not fit.
        """
        if not isinstance(self.data_collator, KeyCollator) or self._reason_of_backend() is not None:
            return  # Training says why, where there is something to say.
        if isinstance(self.processing_class, PreTrainedTokenizerBase | ProcessorMixin):
            align: Any = align_special_tokens  # It is not typed.
            align(self.model, self.processing_class)  # As training does: the fingerprint covers them.
        cache = self._new_cache()
        with kept_random_state():
            loaders = [self.get_train_dataloader(), *self._evaluation_loaders()]
            if cache.prepare_from(loaders[0]):
                cache.build(*loaders, show_progress=not self.args.disable_tqdm)
        cache.close()

    def _reason_of_backend(self) -> str | None:
        if self.args.torch_compile:
            return "training.torch_compile is true, and compiled code would run the frozen blocks all the same"
        plugin = self.accelerator.state.deepspeed_plugin if self.is_deepspeed_enabled else None
        if plugin is not None and plugin.zero_stage == 3:
            return "ZeRO stage 3 shards the frozen blocks, which DeepSpeed gathers only when it calls them itself"
        return None

    def _reason_without_looking(self, cache: ActivationCache, train_dataloader: DataLoader[Any]) -> str | None:
        """Returns why the cache does not pay however much padding it saves, where that is known without the model.

        A run of few steps is not to wait until it is found out that the cache holds, and then leave it off.
        """
        if cache.section.enabled != "auto" or reason_of_plan(self.plan) is not None:
            return None
        reason, found = None, list[tuple[Amount, float]]()
        for loader in (train_dataloader, *self._evaluation_loaders()):
            lengths = Rows(loader, cache.unkeyed).lengths
            if not lengths:
                return None
            passes = self._evaluation_passes() if found else self._train_passes(len(lengths))
            found.append((self._amount_at_best(lengths), passes))
        if not Shelf(cache.section).may_hold(self.plan.depth):
            reason = reason_of_cost(found, position_seconds=1.0)
        return reason if all_agree(reason is not None) else None

    def _amount_at_best(self, lengths: Sequence[int]) -> Amount:
        """Returns how much rows are of which none is stored, in batches that are padded as far as any could be."""
        mean = sum(lengths) / len(lengths)
        padded = mean if self.args.train_sampling_strategy == "group_by_length" else mean * _WIDEST
        return Amount(
            num_rows=len(lengths),
            stored_share=0.0,
            row_bytes=0.0,
            positions=mean,
            padded_positions=padded,
            fetch_seconds=0.0,
        )

    def _build(self, cache: ActivationCache, train_dataloader: DataLoader[Any]) -> None:
        """Builds what will be read more than once, or turns the cache off where computing anew is as cheap."""
        found: list[tuple[Survey, float]] = []
        if (train := self._survey(cache, train_dataloader)) is not None:
            found.append((train, self._train_passes(train.num_rows)))
        evaluated = [self._survey(cache, loader) for loader in self._evaluation_loaders()]
        found += [(survey, self._evaluation_passes()) for survey in evaluated if survey is not None]
        reason, position_seconds = None, cache.stats.position_seconds
        # How often training passes over a stream is not known.
        if cache.section.enabled == "auto" and train is not None:
            reason = reason_of_cost(found, position_seconds)
        # Where each process has a folder of its own, one may have stored what another has not.
        if (reason := first_reason(reason)) is not None:
            cache.turn_off(reason)
            return
        if cache.section.enabled is True:
            # An error before anything is stored, whether rows are stored before training or as they come.
            cache.reserve(round(sum(min(1.0, passes) * survey.missing_bytes for survey, passes in found)))
        is_asked_for = cache.section.build == "eager"
        if is_asked_for or (cache.section.build == "auto" and cache.keys_repeat):
            # What training does not get through, or what takes long to fetch, is computed when it is needed.
            surveys = [
                survey
                for survey, passes in found
                if is_asked_for or all_agree(passes >= 1 and is_quicker_before(survey, position_seconds))
            ]
            cache.build_surveyed(surveys, show_progress=not self.args.disable_tqdm)

    def _survey(self, cache: ActivationCache, loader: DataLoader[Any]) -> Survey | None:
        found = cache.survey(loader)
        if found is not None and self.args.train_sampling_strategy == "group_by_length":
            return replace(found, padded_positions=found.positions)  # Rows of a batch are of like length.
        return found

    def _train_passes(self, num_rows: int) -> float:
        """Returns how often training will pass over its rows, from where it resumes."""
        rows_a_step = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        passes: float = self._steps_left * rows_a_step / num_rows
        return passes if self.args.max_steps > 0 else min(passes, math.ceil(self.args.num_train_epochs))

    def _evaluation_loaders(self) -> list[DataLoader[Any]]:
        """Returns the loaders of the rows that are evaluated while training."""
        if self.args.eval_strategy == IntervalStrategy.NO or self.eval_dataset is None:
            return []
        names = list(self.eval_dataset) if isinstance(self.eval_dataset, dict) else [self.eval_dataset]
        return [self.get_eval_dataloader(name) for name in names]

    def _evaluation_passes(self) -> float:
        """Returns how often training will pass over the rows that are evaluated."""
        if self.args.eval_strategy == IntervalStrategy.STEPS:
            interval = int(self.state.eval_steps or self.args.eval_steps or self._steps_left)
            passes = self._steps_left // max(1, interval)
        else:
            passes = math.ceil(self.state.num_train_epochs * self._steps_left / max(1, self.state.max_steps))
        return float(passes + bool(self.args.eval_on_start))

    @property
    def _steps_left(self) -> int:
        return self.state.max_steps - self.state.global_step

    def evaluation_loop(self, *positional: Any, **keywords: Any) -> EvalLoopOutput:
        """Evaluates or predicts as the Trainer does, after a look at whether frozen weights are as they were.

        Args:
            positional: As for the Trainer.
            keywords: As for the Trainer.
        """
        self.activation_cache.check_weights()
        return super().evaluation_loop(*positional, **keywords)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            self.activation_cache.refresh()  # Elsewhere the cache sees for itself what changed.

    def training_step(self, model: nn.Module, inputs: Any, *positional: Any, **keywords: Any) -> torch.Tensor:
        """Trains on a batch as the Trainer does, behind the frozen prefix where it is cached.

        Args:
            model: As for the Trainer.
            inputs: The batch; its keys are taken out.
            positional: As for the Trainer.
            keywords: As for the Trainer.

        Returns:
            The loss, of shape ().
        """
        with self._served(inputs):
            loss: torch.Tensor = super().training_step(model, inputs, *positional, **keywords)
        return loss

    def prediction_step(self, model: nn.Module, inputs: Any, *positional: Any, **keywords: Any) -> Any:
        """Evaluates a batch as the Trainer does, behind the frozen prefix where it is cached.

        Args:
            model: As for the Trainer.
            inputs: The batch; its keys are taken out.
            positional: As for the Trainer.
            keywords: As for the Trainer.
        """
        with self._served(inputs):
            return super().prediction_step(model, inputs, *positional, **keywords)

    def call_model(self, batch: Mapping[str, Any]) -> Any:
        """Calls the model with a batch, behind the frozen prefix where it is cached, and returns its outputs.

        Args:
            batch: As the collator makes it, on any device.
        """
        inputs = dict(self._prepare_inputs(dict(batch)))
        with self._served(inputs):
            return self.model(**inputs)

    def _served(self, inputs: Any) -> contextlib.AbstractContextManager[Any]:
        keys = inputs.pop(KEYS, None) if isinstance(inputs, MutableMapping) else None
        if keys is None:
            return contextlib.nullcontext()
        cache = self.activation_cache
        if not cache.is_decided and not self.is_in_train:
            self._decide_for_evaluation({**inputs})
        return cache.serve({**inputs, KEYS: keys})

    def _decide_for_evaluation(self, batch: dict[str, Any]) -> None:
        """Uses the cache outside of training where rows are stored: one pass alone does not pay for storing them."""
        cache = self.activation_cache
        reason = self._reason_of_backend()
        if reason is None and cache.prepare(batch) and cache.section.enabled == "auto" and cache.num_rows == 0:
            reason = "nothing is stored yet, and rows are needed once"
        if (reason := first_reason(reason)) is not None:
            cache.turn_off(reason)


class CacheCallback(TrainerCallback):
    """Prepares the cache when training begins, looks after it in each epoch, and notes its size at the end.

    Args:
        trainer: The trainer.
    """

    def __init__(self, trainer: CachingMixin) -> None:
        # The trainer holds its callbacks: a cycle would keep it, and its dataloader workers, until a collection.
        self.trainer = weakref.proxy(trainer)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        train_dataloader: DataLoader[Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Decides whether the cache is used for the model as it was made, loaded and wrapped, and builds it."""
        if train_dataloader is not None:
            self.trainer.prepare_activation_cache(train_dataloader)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Looks whether frozen weights are as they were."""
        self.trainer.activation_cache.check_weights()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Notes how large the store became."""
        self.trainer.activation_cache.close()
