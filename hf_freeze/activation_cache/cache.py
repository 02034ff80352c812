"""The activation cache of one model: whether it holds, and batches served from it.

Shapes: `B` batch, `L` sequence length of the batch, padding included, `H` hidden.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import DataLoader

from hf_freeze.activation_cache import building, checks, trimming
from hf_freeze.activation_cache.collator import keyed_inputs, with_keys
from hf_freeze.activation_cache.comparing import Loss
from hf_freeze.activation_cache.housekeeping import remove_if_empty
from hf_freeze.activation_cache.keys import KEYS, decoder_inputs, model_name, prefix_fingerprints
from hf_freeze.activation_cache.notices import say_off, sentence
from hf_freeze.activation_cache.outputs import CacheStats, PrefixOutputs
from hf_freeze.activation_cache.processes import all_agree, first_reason, of_all_shards, rank_and_world
from hf_freeze.activation_cache.records import STORED_DTYPES
from hf_freeze.activation_cache.replay import ModulesReplaced, Replay
from hf_freeze.activation_cache.rows import Rows, Survey, kept_random_state
from hf_freeze.activation_cache.shelf import Shelf
from hf_freeze.activation_cache.store import ActivationStore
from hf_freeze.activation_cache.watching import PrefixWatch, reason_of_flags
from hf_freeze.config import ActivationCacheConfig, parse_section
from hf_freeze.errors import CacheError
from hf_freeze.plan.apply import plan_of
from hf_freeze.plan.resolve import FreezePlan
from hf_freeze.plan.wrappers import unwrap_model

# What a model may raise on a batch that is not meant for it as it is.
_MODEL_ERRORS = (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError)


class ActivationCache:
    """Computes the outputs of the frozen prefix once per row, keeps them, and runs the rest of the model on them.

    ```
    cache = ActivationCache(model)
    loader = cache.wrap(loader)
    for batch in loader:
        with cache.serve(batch) as inputs:
            model(**inputs).loss.backward()
    ```

    Attributes:
        model: The model.
        plan: What is frozen in it.
        is_decided: Whether it is known if the cache is on.
        reason: Why it is off; None where it is on, or nothing is known yet.
        keys_repeat: Whether a row has the same key in every batch; False where it depends on how far that is padded.
        stats: What it did.

    Args:
        model: The model that carries a plan, wrapped or not.
        plan: What is frozen in it; the plan that is applied to it, now and later, where it is left out.
        section: The `activation_cache` section: a mapping with its keys, or an instance.
        label_names: Names of the labels in a batch: they do not change what the prefix computes.
        loss: Returns the loss of a batch from the model and the batch, labels included, where the model itself does not
            compute it: rows keep their padding where it depends on what stands there.

    Raises:
        ConfigError: The section cannot be read.
        PlanError: No plan was applied to the model.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: FreezePlan | None = None,
        section: ActivationCacheConfig | Mapping[str, object] | None = None,
        *,
        label_names: Collection[str] = ("labels",),
        loss: Loss | None = None,
    ) -> None:
        self.section = parse_section(ActivationCacheConfig, section or {}, key="activation_cache")
        self.model = model
        self.plan = plan_of(model) if plan is None else plan
        self._follows_model = plan is None
        self.unkeyed = frozenset((*label_names, *decoder_inputs(model)))
        self.stats = CacheStats()
        self.reason: str | None = None
        self._label_names = tuple(label_names)
        self._loss = loss
        self._outputs: PrefixOutputs | None = None
        self.is_decided = False
        self.keys_repeat = False
        self._shelf = Shelf(self.section)

    @property
    def is_on(self) -> bool:
        """Whether batches are served from the cache."""
        return self._outputs is not None

    @property
    def num_rows(self) -> int:
        """How many rows are stored."""
        return 0 if self._outputs is None else len(self._outputs.store)

    def prepare(self, batch: Mapping[str, Any]) -> bool:
        """Finds out on a few rows whether the cache holds for this model, and returns it.

        Nothing is stored, and random state, modes and buffers are as before afterwards.

        Args:
            batch: A batch as the model is called with it, labels included; up to eight of its rows are used.

        Raises:
            CacheError: The batch is no mapping; the cache does not hold, and `enabled` is true.
        """
        checks.check_batch("prepare", batch)
        return self._prepare(batch, widths_vary=None)

    def _prepare(self, batch: Mapping[str, Any], *, widths_vary: bool | None) -> bool:
        try:
            reason = self._start(batch, widths_vary)
        except CacheError as error:
            reason = str(error)
        return self._decide(first_reason(reason))

    def prepare_from(self, loader: DataLoader[Any]) -> bool:
        """Finds out on a few rows of a loader whether the cache holds, and returns it.

        The rows are fetched twice: where they differ, because of augmentation or masking, the cache is off.

        Args:
            loader: The loader; its collator is used, its iteration is left alone.

        Raises:
            CacheError: The cache does not hold, and `enabled` is true.
        """
        reason = self._reason_without_rows()
        batch, widths_vary = None, True
        if reason is None:
            rows = Rows(loader, self.unkeyed)
            batch, widths_vary, reason = rows.probe(checks.PROBE_SIZE, reads_any_stream=self.section.enabled is True)
        if (reason := first_reason(reason)) is not None or batch is None:
            return self._decide(reason)
        device = next(self.model.parameters()).device
        batch = {n: v.to(device) if isinstance(v, torch.Tensor) else v for n, v in batch.items()}
        return self._prepare(batch, widths_vary=widths_vary)

    def turn_off(self, reason: str) -> None:
        """Turns the cache off for good.

        Args:
            reason: Why; it is said once.

        Raises:
            CacheError: `enabled` is true.
        """
        self._decide(reason)

    def survey(self, loader: DataLoader[Any]) -> Survey | None:
        """Looks at a sample of the rows of a loader, and returns what it says about all; None where there is no length.

        Args:
            loader: The loader.

        Raises:
            CacheError: The cache is off.
        """
        rows = Rows(loader, self.unkeyed)
        return building.survey(self._on(), rows) if rows.has_length and len(rows) > 0 else None

    def reserve(self, num_bytes: int) -> bool:
        """Makes room for rows by removing stores that are longest unused; turns the cache off where there is none.

        Args:
            num_bytes: What the rows will take.

        Raises:
            CacheError: The cache is off, or there is no room and `enabled` is true.
        """
        return self._decide(first_reason(self._shelf.reserve(self._on().store, num_bytes)))

    def build(self, *loaders: DataLoader[Any], show_progress: bool = True) -> None:
        """Computes and stores the rows of some loaders that are not stored, in batches of rows of equal length.

        Rows of which a sample is stored already are left alone: what is missing of them is computed when it is needed.

        Args:
            loaders: Loaders whose datasets have a length; their collators are used, their iteration is left alone.
            show_progress: Whether to show a progress bar with rows, tokens per second, bytes and the time left.

        Raises:
            CacheError: The cache does not hold or does not fit, and `enabled` is true.
        """
        self._refresh_if_changed()
        if not self.is_decided and loaders:
            self.prepare_from(loaders[0])
        if self._outputs is None:
            return
        surveys = [found for loader in loaders if (found := self.survey(loader)) is not None]
        self.build_surveyed(surveys, show_progress=show_progress)

    def build_surveyed(self, surveys: Sequence[Survey], *, show_progress: bool = True) -> None:
        """Builds as `build` does, from what `survey` has found.

        Args:
            surveys: What is known about the rows of each loader.
            show_progress: Whether to show a progress bar.

        Raises:
            CacheError: The cache is off, or does not fit and `enabled` is true.
        """
        outputs, reason = self._on(), None
        if not self.reserve(sum(found.missing_bytes for found in surveys)):
            return
        try:
            for found in surveys:
                if outputs.anywhere(found.stored_share < 1):
                    building.build(outputs, found.rows, show_progress=show_progress)
        except ModulesReplaced as error:
            reason = str(error)
        self.stats.num_bytes = outputs.store.num_bytes
        self._decide(first_reason(reason))

    def wrap(self, loader: Iterable[Any]) -> Iterable[Any]:
        """Returns the loader with the keys of its rows in every batch: workers compute them ahead of the main process.

        Args:
            loader: A `DataLoader`; any other iterable is returned as it is, and `serve` computes the keys.

        Raises:
            CacheError: The cache does not hold, and `enabled` is true.
        """
        if not isinstance(loader, DataLoader):
            return loader
        if not self.is_decided:
            self.prepare_from(loader)
        if not self.is_on:
            return loader
        return with_keys(loader, self.unkeyed)

    @contextlib.contextmanager
    def serve(self, batch: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Has the model's calls with this batch start behind the frozen prefix; yields the batch without keys.

        Rows that are not stored are computed and stored. Calls with other inputs run in full.

        Args:
            batch: A batch, on the model's device.

        Raises:
            CacheError: The batch is no mapping; the cache does not hold or its folder can no longer be opened, and
                `enabled` is true; with several processes, such a folder is one whatever `enabled` is.
        """
        checks.check_batch("serve", batch)
        inputs = dict(batch)
        keys = inputs.pop(KEYS, None)
        self._refresh_if_changed()
        if not self.is_decided:
            self.prepare(inputs)
        keyed = keyed_inputs(inputs, self.unkeyed)
        if self._outputs is None or checks.reason_of_inputs(keyed, keys) is not None:
            yield inputs
            return
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(self._outputs.serve(inputs, keyed, keys))
            except ModulesReplaced as error:
                self._decide(str(error))
            except CacheError as error:
                # Where there are others, they would wait for this process when they next decide together.
                if rank_and_world()[1] > 1:
                    raise
                self._outputs.close()
                self._outputs = None
                self._decide(str(error))
            yield inputs

    def check_weights(self) -> None:
        """Reads all weights of the prefix, and has the next batch decide anew where any was written since.

        `serve` does so every so many batches, where there is one process; otherwise all of them have to call it.
        """
        if self._outputs is not None and not all_agree(not self._outputs.watch.values_changed()):
            self.refresh()

    def refresh(self) -> None:
        """Has the next batch decide anew and take the fingerprint anew, as after weights were loaded.

        This happens by itself where modules or parameters of the prefix are replaced, where parameters change (in
        place, their memory, or their dtype) or train, where another plan is applied, and with autocast and the
        attention implementation; `check_weights` finds what was written otherwise, but into buffers and shards.
        """
        self.close()
        if self.is_on:
            self._outputs, self.is_decided = None, False

    def close(self) -> None:
        """Notes the size of the store and closes it; the next use opens it again."""
        if self._outputs is not None:
            self.stats.num_bytes = self._outputs.store.num_bytes
            self._outputs.close()

    def _on(self) -> PrefixOutputs:
        if self._outputs is None:
            raise CacheError(
                f"activation_cache: the cache is off; got a call that needs it. "
                f"{sentence(self.reason or 'prepare() was not called')} Call prepare() first and look at is_on."
            )
        return self._outputs

    def _decide(self, reason: str | None) -> bool:
        """Takes note of whether the cache is on, and says once why it is not."""
        self.is_decided = True
        if reason is None:
            return True
        if self._outputs is not None:
            self.close()
            remove_if_empty(self._outputs.store.folder)
        self._outputs, self.reason = None, reason
        say_off(reason, self.plan, self.section.enabled)
        return False

    def _reason_without_rows(self) -> str | None:
        if self.section.enabled is False:
            return "activation_cache.enabled is false"
        if self._follows_model:
            self.plan = plan_of(self.model)
        reason = checks.reason_of_plan(self.plan) or checks.reason_of_model(self.model)
        return reason or reason_of_flags(self.model, self.plan)

    def _start(self, batch: Mapping[str, Any], widths_vary: bool | None) -> str | None:
        """Runs the model on a few rows and opens the store, or returns why the cache cannot be used."""
        if (reason := self._reason_without_rows()) is not None:
            return reason
        inputs = {name: value for name, value in batch.items() if name != KEYS}
        keyed = keyed_inputs(inputs, self.unkeyed)
        if (reason := checks.reason_of_inputs(keyed)) is not None:
            return reason
        inputs = checks.few_rows(inputs, keyed)
        keyed = keyed_inputs(inputs, self.unkeyed)
        replay = Replay(self.model, self.plan, self.unkeyed)
        try:
            with kept_random_state():
                reason = replay.probe(inputs, label_names=self._label_names)
                reason = reason or checks.reason_of_prefix(replay, self.plan, inputs)
        except _MODEL_ERRORS as error:
            return f"the model cannot be called with a batch as it is ({type(error).__name__}: {error})"
        if reason is not None:
            return reason
        hidden = self.stats.time_prefix(replay, inputs)
        dtype = STORED_DTYPES.get(self.section.dtype, hidden.dtype)
        try:
            whole = trimming.reason_to_keep_padding(replay, inputs, keyed, self._loss)
            reason = checks.reason_of_dtype(replay, inputs, keyed, hidden, dtype, self._loss)
        except _MODEL_ERRORS as error:
            reason = f"the loss of a few rows cannot be computed ({type(error).__name__}: {error})"
        if reason is not None:
            return reason
        trims = whole is None
        varies = trimming.pads_to_the_longest(keyed) if widths_vary is None else widths_vary
        self.keys_repeat = (trims and not trimming.pads_on_the_left(keyed)) or not varies
        if not self.keys_repeat and self.section.enabled == "auto":
            return trimming.reason_of_widths(whole or "padding comes first")
        store, shallower = self._open(replay, dtype)
        exact = {k: each for k, each in shallower.items() if checks.grows_exactly(replay, inputs, hidden, k)}
        watch = PrefixWatch(self.model, self.plan, replay)
        outputs = PrefixOutputs(
            replay, store, exact, watch, trims=trims, stored_dtype=dtype, hidden=hidden, stats=self.stats
        )
        if checks.is_stored_wrongly(outputs, hidden, keyed):
            return (
                f"what is stored in {store.folder} is not what the frozen blocks compute; something in them, such as a "
                "hook, is in no fingerprint, and another activation_cache.dir would start anew"
            )
        self._outputs = outputs
        return None

    def _open(self, replay: Replay, dtype: torch.dtype) -> tuple[ActivationStore, dict[int, ActivationStore]]:
        """Opens the store of the prefix, and those of shorter prefixes that exist."""
        prints = prefix_fingerprints(self.model, self.plan, precision=replay.precision, dtype=dtype)
        if isinstance(unwrap_model(self.model), FSDPModule):
            prints = of_all_shards(prints)
        return self._shelf.open(prints, model=model_name(self.model), dtype=dtype)

    def _refresh_if_changed(self) -> None:
        if self._outputs is None:
            return
        if (self._follows_model and plan_of(self.model) is not self.plan) or self._outputs.watch.has_changed():
            self.refresh()
