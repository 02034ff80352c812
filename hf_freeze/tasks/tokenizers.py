"""Loading tokenizers, and what a model and its tokenizer must agree on: padding, and how long a text may be."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from hf_freeze.errors import ConfigError
from hf_freeze.tasks.models import hub_arguments

_log = logging.getLogger(__name__)

# Tokenizers that know no limit give a huge number.
_NO_LIMIT: Final = 10**9


def load_tokenizer(
    name_or_path: str, *, trust_remote_code: bool = False, from_pretrained: Mapping[str, Any] | None = None
) -> PreTrainedTokenizerBase:
    """Loads a tokenizer.

    Args:
        name_or_path: A folder, or the name of a model on the hub.
        trust_remote_code: Whether code that comes with the model may run.
        from_pretrained: The arguments that the model is loaded with; those about where files come from count here.

    Raises:
        ConfigError: There is no tokenizer.
    """
    problem = (
        f"model.name_or_path: {name_or_path!r} has no tokenizer that can be read. Save one beside the model with "
        "tokenizer.save_pretrained, or name a checkpoint that has one."
    )
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            name_or_path, trust_remote_code=trust_remote_code, **hub_arguments(from_pretrained or {})
        )
    except (ImportError, OSError, TypeError, ValueError) as error:
        raise ConfigError(problem) from error
    # Without any file, transformers builds a tokenizer of the model's kind that knows the special tokens only.
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise ConfigError(problem)
    return tokenizer


def share_pad_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Makes the model know the token that the tokenizer pads with: its end-of-text token where it has none for padding.

    Decoders such as GPT-2 and Llama classify at the last token that is no padding, which they find by this number.

    Args:
        model: The model.
        tokenizer: Its tokenizer.

    Raises:
        ConfigError: The tokenizer has neither a padding nor an end-of-text token.
    """
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ConfigError(
                "model.name_or_path: the tokenizer has neither a padding nor an end-of-text token, so rows of "
                "different lengths cannot form a batch. Set tokenizer.pad_token and save it with the model."
            )
        tokenizer.pad_token = tokenizer.eos_token
        _log.info("The tokenizer has no padding token: it pads with its end-of-text token, %s.", tokenizer.eos_token)
    for config in (model.config, model.config.get_text_config()):
        config.pad_token_id = tokenizer.pad_token_id


def max_positions(model: PreTrainedModel) -> int | None:
    """Returns how many tokens a model can read, or None where nothing in it limits them.

    Args:
        model: The model.
    """
    config = model.config.get_text_config()
    key = config.attribute_map.get("max_position_embeddings", "max_position_embeddings")
    positions = config.to_dict().get(key)
    if not isinstance(positions, int) or positions <= 0:
        return None
    for module in model.modules():
        # RoBERTa and its kin number positions from the one after the padding's, which shortens their table.
        if isinstance(module, nn.Embedding) and module.num_embeddings == positions and module.padding_idx is not None:
            return positions - module.padding_idx - 1
    return positions


def resolve_max_length(
    max_length: int | None, *, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, is_pair: bool
) -> int | None:
    """Returns how many tokens of a text are kept, or None for all.

    Args:
        max_length: What the user asked for; None for as much as model and tokenizer can take.
        model: The model.
        tokenizer: Its tokenizer.
        is_pair: Whether a row has two texts.

    Raises:
        ConfigError: The model cannot read as many, or they leave no room for the text.
    """
    positions = max_positions(model)
    if max_length is None:
        limits = [limit for limit in (positions, tokenizer.model_max_length) if limit is not None and limit < _NO_LIMIT]
        return min(limits, default=None)
    if positions is not None and max_length > positions:
        raise ConfigError(
            f"data.max_length: the model reads at most {positions} tokens; got {max_length}. "
            "Set data.max_length to that or less, or leave it out."
        )
    num_special = tokenizer.num_special_tokens_to_add(pair=is_pair)
    if max_length <= num_special:
        raise ConfigError(
            f"data.max_length: the tokenizer adds {num_special} tokens of its own, which leaves no room for text; got "
            f"{max_length}. Set data.max_length to more."
        )
    return max_length
