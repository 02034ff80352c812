"""The part of the trainer that makes a step cheap where little of the model trains.

The Trainer goes through all parameters of the model several times a step. Where the frozen part need not be computed,
this is most of what is left. `_clip_grad_norm` is private: there is no public seam between backward pass and optimizer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from accelerate.utils import DistributedType
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, Trainer

from hf_freeze.plan.apply import plan_of
from hf_freeze.plan.resolve import FreezePlan

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object  # The Trainer class comes behind the mixin among the bases of whatever class uses it.

# Where gradients are whole on every process, and lie in `parameter.grad`.
_PLAIN = frozenset({DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU})


class LoopMixin(_Base):
    """Looks at the parameters that train, and counts the others once."""

    # The Trainer declares it as optional: it is None before the Trainer has made it.
    model: Any

    _trained: tuple[FreezePlan, list[nn.Parameter]] | None = None
    _counted: tuple[FreezePlan, int] | None = None

    def floating_point_ops(self, inputs: Any) -> int:
        """Returns what the Trainer returns: 6 operations per token and parameter, embeddings excluded.

        Args:
            inputs: The batch.
        """
        if not isinstance(self.model, PreTrainedModel) or self.model.main_input_name not in inputs:
            return super().floating_point_ops(inputs)
        plan = plan_of(self.model)
        if self._counted is None or self._counted[0] is not plan:
            self._counted = (plan, self.model.num_parameters(exclude_embeddings=True))
        return 6 * int(inputs[self.model.main_input_name].numel()) * self._counted[1]

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        plan = plan_of(self.model)
        if self._trained is None or self._trained[0] is not plan:
            self._trained = (plan, [parameter for parameter in model.parameters() if parameter.requires_grad])
        # Transformers shards models by itself, too, without a word to accelerate.
        is_sharded = any(isinstance(parameter, DTensor) for parameter in self._trained[1])
        if is_sharded or self.accelerator.distributed_type not in _PLAIN:
            trainer: Any = super()
            return trainer._clip_grad_norm(model)
        return self.accelerator.clip_grad_norm_(self._trained[1], self.args.max_grad_norm)
