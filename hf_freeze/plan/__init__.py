"""What trains: found, decided, applied, priced."""

from hf_freeze.plan.apply import apply_plan, plan_of
from hf_freeze.plan.layout import Layout, Parameter, find_layout
from hf_freeze.plan.places import ROLE_EMBEDDINGS, ROLE_HEAD, Stack, block_role
from hf_freeze.plan.prepare import freeze_model, merge_adapters, print_trainable_parameters
from hf_freeze.plan.resolve import Decision, FreezePlan, FreezeState, resolve_plan
from hf_freeze.plan.wrappers import canonical_name, named_parameters, resolve_module, unwrap_model

__all__ = [
    "ROLE_EMBEDDINGS",
    "ROLE_HEAD",
    "Decision",
    "FreezePlan",
    "FreezeState",
    "Layout",
    "Parameter",
    "Stack",
    "apply_plan",
    "block_role",
    "canonical_name",
    "find_layout",
    "freeze_model",
    "merge_adapters",
    "named_parameters",
    "plan_of",
    "print_trainable_parameters",
    "resolve_module",
    "resolve_plan",
    "unwrap_model",
]
