"""Tiny models with random weights and a tiny tokenizer, made from configs: nothing is downloaded.

Every model has four blocks per stack, hidden size 32 and 99 words, no dropout unless it is asked for, and the same
weights for the same seed. The global random state is left as it was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModelForAudioClassification,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

NUM_BLOCKS = 4
HIDDEN_SIZE = 32
VOCAB_SIZE = 99
MAX_LENGTH = 64
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

_BLOCKS = {
    "num_hidden_layers": NUM_BLOCKS,
    "num_attention_heads": 4,
    "hidden_size": HIDDEN_SIZE,
    "intermediate_size": 64,
}
_WORDS = {"vocab_size": VOCAB_SIZE, "max_position_embeddings": MAX_LENGTH, "pad_token_id": 0}
_NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def build(auto_class: Any, model_type: str, *, seed: int = 0, **config: Any) -> PreTrainedModel:
    """Builds a model of one architecture with random weights.

    Args:
        auto_class: The AutoModel class that names the task.
        model_type: The architecture, as transformers calls it.
        seed: What the weights are drawn from.
        **config: Fields of the architecture's config.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: PreTrainedModel = auto_class.from_config(AutoConfig.for_model(model_type, **config))
    return model


def tiny_bert(*, seed: int = 0, **config: Any) -> PreTrainedModel:
    """Builds a BERT that classifies sequences (two labels unless `num_labels` says otherwise)."""
    config = {**_BLOCKS, **_WORDS, **_NO_DROPOUT, **config}
    return build(AutoModelForSequenceClassification, "bert", seed=seed, **config)


def tiny_gpt2(*, seed: int = 0, **config: Any) -> PreTrainedModel:
    """Builds a GPT-2 language model; its output embedding is tied to its input embedding."""
    sizes = {"n_layer": NUM_BLOCKS, "n_head": 4, "n_embd": HIDDEN_SIZE, "n_positions": MAX_LENGTH}
    words = {"vocab_size": VOCAB_SIZE, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return build(AutoModelForCausalLM, "gpt2", seed=seed, **{**sizes, **words, **no_dropout, **config})


def tiny_llama(*, seed: int = 0, **config: Any) -> PreTrainedModel:
    """Builds a Llama language model; its output embedding is not tied unless `tie_word_embeddings` says so."""
    ends = {"bos_token_id": 2, "eos_token_id": 3}
    return build(
        AutoModelForCausalLM, "llama", seed=seed, **{**_BLOCKS, **_WORDS, **ends, "num_key_value_heads": 2, **config}
    )


def tiny_t5(*, seed: int = 0, **config: Any) -> PreTrainedModel:
    """Builds a T5 of two stacks with shared embeddings."""
    sizes = {"num_layers": NUM_BLOCKS, "num_heads": 4, "d_model": HIDDEN_SIZE, "d_kv": 8, "d_ff": 64}
    words = {"vocab_size": VOCAB_SIZE, "pad_token_id": 0, "decoder_start_token_id": 0, "eos_token_id": 3}
    return build(AutoModelForSeq2SeqLM, "t5", seed=seed, **{**sizes, **words, "dropout_rate": 0.0, **config})


def tiny_bart(*, seed: int = 0, **config: Any) -> PreTrainedModel:
    """Builds a BART of two stacks with shared embeddings."""
    sizes = {
        "d_model": HIDDEN_SIZE,
        **{f"{stack}_layers": NUM_BLOCKS for stack in ("encoder", "decoder")},
        **{f"{stack}_attention_heads": 4 for stack in ("encoder", "decoder")},
        **{f"{stack}_ffn_dim": 64 for stack in ("encoder", "decoder")},
    }
    ends = {"bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 3, "forced_eos_token_id": None}
    no_dropout = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}
    return build(AutoModelForSeq2SeqLM, "bart", seed=seed, **{**sizes, **_WORDS, **ends, **no_dropout, **config})


def tiny_vit(*, seed: int = 0, **config: Any) -> PreTrainedModel:
    """Builds a ViT that classifies images of 32 x 32 pixels."""
    config = {**_BLOCKS, **_NO_DROPOUT, "image_size": 32, "patch_size": 8, **config}
    return build(AutoModelForImageClassification, "vit", seed=seed, **config)


def tiny_wav2vec2(*, seed: int = 0, **config: Any) -> PreTrainedModel:
    """Builds a Wav2Vec2 that classifies recordings; its convolutions are a second list of equal modules."""
    convolutions = {"conv_dim": (16, 16), "conv_stride": (4, 4), "conv_kernel": (8, 8), "num_feat_extract_layers": 2}
    positions = {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}
    no_dropout = {
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
        "feat_proj_dropout": 0.0,
        "layerdrop": 0.0,
        "mask_time_prob": 0.0,
    }
    config = {**_BLOCKS, **convolutions, **positions, **no_dropout, **config}
    return build(AutoModelForAudioClassification, "wav2vec2", seed=seed, **config)


def tiny_batch(*, rows: int = 2, length: int = 10, seed: int = 0) -> dict[str, torch.Tensor]:
    """Draws token ids [rows, length] and their mask; the last row is two tokens shorter and padded on the right."""
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(len(SPECIAL_TOKENS), VOCAB_SIZE, (rows, length), generator=generator)
    attention_mask = torch.ones_like(input_ids)
    input_ids[-1, -2:] = 0
    attention_mask[-1, -2:] = 0
    return {"input_ids": input_ids, "attention_mask": attention_mask}


def tiny_tokenizer(texts: Iterable[str] = ()) -> PreTrainedTokenizerFast:
    """Builds a lower-casing tokenizer of whole words with 99 entries.

    Args:
        texts: Where the words come from, the most frequent first; what is left of the 99 entries is called `word<id>`.
    """
    splitter = pre_tokenizers.Whitespace()
    counts = Counter(word for text in texts for word, _ in splitter.pre_tokenize_str(text.lower()))
    words = [word for word, _ in counts.most_common(VOCAB_SIZE - len(SPECIAL_TOKENS))]
    entries = [*SPECIAL_TOKENS, *words]
    entries += [f"word{index}" for index in range(len(entries), VOCAB_SIZE)]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(entries)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = splitter
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=MAX_LENGTH,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        bos_token="[CLS]",
        eos_token="[SEP]",
    )
