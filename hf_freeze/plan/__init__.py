"""What trains: found, decided, applied, priced."""

from hf_freeze.plan.layout import Layout, Parameter, find_layout
from hf_freeze.plan.places import ROLE_EMBEDDINGS, ROLE_HEAD, Stack, block_role
from hf_freeze.plan.wrappers import canonical_name, named_parameters, resolve_module, unwrap_model

__all__ = [
    "ROLE_EMBEDDINGS",
    "ROLE_HEAD",
    "Layout",
    "Parameter",
    "Stack",
    "block_role",
    "canonical_name",
    "find_layout",
    "named_parameters",
    "resolve_module",
    "unwrap_model",
]
