"""The part of the trainer that tells callbacks what `Trainer` has no event for, over a public seam where there is one.

`training_step` ends with the backward pass, before `Trainer` clips: its own next event comes after clipping.
`_load_from_checkpoint` is private: no event comes while the weights that a resumed run started from are still there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import Trainer, TrainerCallback

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object  # The Trainer class comes behind the mixin among the bases of whatever class uses it.


class WatchingCallback(TrainerCallback):
    """A callback with three events more, which come from the trainers of hf_freeze only."""

    def on_weights_load(self, trainer: WatchingMixin) -> None:
        """Called where a run is resumed, before the weights of the checkpoint replace those of the model.

        Args:
            trainer: The trainer; its model has been made, and wrapped where the checkpoint is sharded.
        """

    def on_batch(self, trainer: WatchingMixin, loss: torch.Tensor) -> None:
        """Called once per batch, after its backward pass.

        Args:
            trainer: The trainer.
            loss: Of this process, of shape (); those of accumulated batches add up to the loss of the step.
        """

    def on_gradients(self, trainer: WatchingMixin) -> None:
        """Called once per step, when the gradients are whole (accumulated, averaged over processes) and not clipped.

        With float16 they are still multiplied by the scale of `trainer.accelerator.scaler`.

        Args:
            trainer: The trainer.
        """


class WatchingMixin(_Base):
    """Tells its callbacks of losses, when gradients are ready, and when weights are about to be loaded."""

    # The Trainer declares it as optional: it is None before the Trainer has made it.
    model: Any

    @property
    def gradients_are_local(self) -> bool:
        """Whether gradients are found in `parameter.grad`, which DeepSpeed and FSDP1 keep elsewhere."""
        return not self.is_deepspeed_enabled and (not self.is_fsdp_enabled or self.accelerator.is_fsdp2)

    def training_step(self, model: nn.Module, inputs: Any, *positional: Any, **keywords: Any) -> torch.Tensor:
        """Trains on a batch as the Trainer does.

        Args:
            model: As for the Trainer.
            inputs: The batch.
            positional: As for the Trainer.
            keywords: As for the Trainer.

        Returns:
            The loss, of shape ().
        """
        loss: torch.Tensor = super().training_step(model, inputs, *positional, **keywords)
        for callback in self._watching_callbacks():
            callback.on_batch(self, loss)
        if self.accelerator.sync_gradients:
            for callback in self._watching_callbacks():
                callback.on_gradients(self)
        return loss

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        for callback in self._watching_callbacks():
            callback.on_weights_load(self)
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _watching_callbacks(self) -> Iterator[WatchingCallback]:
        return (callback for callback in self.callback_handler.callbacks if isinstance(callback, WatchingCallback))
