"""Many architectures as tiny models with random weights, and an input for each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import (
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForSpeechSeq2Seq,
    PreTrainedModel,
)

from tests import tiny

_BLOCKS = {"num_hidden_layers": 4, "num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 64}
_TEXT = {**_BLOCKS, "vocab_size": tiny.VOCAB_SIZE, "max_position_embeddings": 64, "pad_token_id": 0}
_DECODER = {**_TEXT, "num_key_value_heads": 2, "head_dim": 8, "bos_token_id": 2, "eos_token_id": 3}
_GPT = {"n_embd": 32, "n_layer": 4, "n_head": 4, "vocab_size": 99, "n_positions": 64}
_TWO_STACKS = {
    "d_model": 32,
    "encoder_layers": 4,
    "decoder_layers": 4,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "vocab_size": 99,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}
_T5 = {
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 4,
    "num_heads": 4,
    "vocab_size": 99,
    "decoder_start_token_id": 0,
}
_IMAGE = {**_BLOCKS, "image_size": 32, "patch_size": 8}
_AUDIO = {
    **_BLOCKS,
    "conv_dim": (16, 16),
    "conv_stride": (4, 4),
    "conv_kernel": (8, 8),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
    "layerdrop": 0.0,
}
_SPEECH = {
    **_TWO_STACKS,
    "num_hidden_layers": 4,
    "max_source_positions": 50,
    "max_target_positions": 64,
    "num_mel_bins": 8,
    "decoder_start_token_id": 1,
}
_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_CLIP = {
    "text_config": {**_TEXT, "bos_token_id": 1, "eos_token_id": 98},
    "vision_config": _IMAGE,
    "projection_dim": 16,
}


def _draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _tokens() -> dict[str, torch.Tensor]:
    return tiny.tiny_batch()


def _tokens_alone() -> dict[str, torch.Tensor]:
    return {"input_ids": tiny.tiny_batch()["input_ids"]}


def _labelled() -> dict[str, torch.Tensor]:
    return {**tiny.tiny_batch(), "labels": tiny.tiny_batch()["input_ids"]}


def _pixels() -> dict[str, torch.Tensor]:
    return {"pixel_values": _draw(2, 3, 32, 32)}


def _waves() -> dict[str, torch.Tensor]:
    return {"input_values": _draw(2, 800)}


def _spectrograms() -> dict[str, torch.Tensor]:
    return {"input_features": _draw(2, 8, 100), "labels": tiny.tiny_batch()["input_ids"]}


def _pixels_and_tokens() -> dict[str, torch.Tensor]:
    return {**_tokens(), **_pixels()}


@dataclass(frozen=True)
class Architecture:
    """One architecture: which class, which config, which input."""

    auto_class: Any
    model_type: str
    config: dict[str, Any] = field(default_factory=dict)
    inputs: Callable[[], dict[str, torch.Tensor]] = _tokens

    def build(self) -> PreTrainedModel:
        """Builds the model, in eval mode."""
        return tiny.build(self.auto_class, self.model_type, **self.config).eval()


def _family(
    auto_class: Any,
    config: dict[str, Any],
    names: str,
    inputs: Callable[[], dict[str, torch.Tensor]] = _tokens,
) -> dict[str, Architecture]:
    return {name: Architecture(auto_class, name, config, inputs) for name in names.split()}


ARCHITECTURES: dict[str, Architecture] = {
    **_family(
        AutoModelForSequenceClassification,
        _TEXT,
        "bert roberta electra deberta deberta-v2 mpnet camembert xlm-roberta ernie modernbert roformer megatron-bert "
        "layoutlm rembert big_bird mobilebert esm data2vec-text convbert nystromformer eurobert",
    ),
    **_family(AutoModelForSequenceClassification, _TEXT, "fnet", _tokens_alone),
    **_family(
        AutoModelForCausalLM,
        _DECODER,
        "llama mistral qwen2 qwen3 gemma gemma2 gemma3_text phi phi3 gpt_neox olmo2 smollm3 mixtral granite starcoder2 "
        "stablelm cohere",
    ),
    **_family(AutoModelForSeq2SeqLM, _TWO_STACKS, "bart mbart pegasus m2m_100 marian blenderbot", _labelled),
    **_family(AutoModelForSeq2SeqLM, _T5, "t5 mt5", _labelled),
    **_family(AutoModelForImageClassification, _IMAGE, "vit dinov2 beit vit_msn ijepa", _pixels),
    **_family(AutoModelForAudioClassification, _AUDIO, "wav2vec2 hubert wavlm data2vec-audio", _waves),
    "squeezebert": Architecture(AutoModelForSequenceClassification, "squeezebert", {**_TEXT, "embedding_size": 32}),
    "funnel": Architecture(
        AutoModelForSequenceClassification,
        "funnel",
        {"block_sizes": [2, 2], "d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 64, "vocab_size": 99},
    ),
    "siglip classifier": Architecture(
        AutoModelForImageClassification, "siglip", {"vision_config": _IMAGE, "text_config": _TEXT}, _pixels
    ),
    "bert masked": Architecture(AutoModelForMaskedLM, "bert", _TEXT),
    "llama classifier": Architecture(AutoModelForSequenceClassification, "llama", _DECODER),
    "deberta-v2 with convolution": Architecture(
        AutoModelForSequenceClassification,
        "deberta-v2",
        {
            **_TEXT,
            "conv_kernel_size": 3,
            "relative_attention": True,
            "norm_rel_ebd": "layer_norm",
            "position_buckets": 8,
        },
    ),
    "distilbert": Architecture(
        AutoModelForSequenceClassification,
        "distilbert",
        {"dim": 32, "n_layers": 4, "n_heads": 4, "hidden_dim": 64, "vocab_size": 99, "max_position_embeddings": 64},
    ),
    "longformer": Architecture(
        AutoModelForSequenceClassification, "longformer", {**_TEXT, "attention_window": [4] * 4}
    ),
    "canine": Architecture(
        AutoModelForSequenceClassification,
        "canine",
        {**_BLOCKS, "downsampling_rate": 2, "num_hash_buckets": 64, "local_transformer_stride": 4},
    ),
    "xlnet": Architecture(
        AutoModelForSequenceClassification,
        "xlnet",
        {"d_model": 32, "n_layer": 4, "n_head": 4, "d_inner": 64, "vocab_size": 99},
    ),
    "gpt2": Architecture(AutoModelForCausalLM, "gpt2", _GPT),
    "gptj": Architecture(AutoModelForCausalLM, "gptj", {**_GPT, "rotary_dim": 4}),
    "gpt_neo": Architecture(
        AutoModelForCausalLM,
        "gpt_neo",
        {
            "hidden_size": 32,
            "num_layers": 4,
            "num_heads": 4,
            "vocab_size": 99,
            "max_position_embeddings": 64,
            "attention_types": [[["global", "local"], 2]],
        },
    ),
    "bloom": Architecture(
        AutoModelForCausalLM, "bloom", {"hidden_size": 32, "n_layer": 4, "n_head": 4, "vocab_size": 99}
    ),
    "opt": Architecture(
        AutoModelForCausalLM,
        "opt",
        {
            "hidden_size": 32,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "ffn_dim": 64,
            "vocab_size": 99,
            "max_position_embeddings": 64,
            "word_embed_proj_dim": 16,
            "pad_token_id": 0,
        },
    ),
    "qwen3_moe": Architecture(AutoModelForCausalLM, "qwen3_moe", {**_DECODER, **_MOE}),
    "mamba": Architecture(
        AutoModelForCausalLM,
        "mamba",
        {"hidden_size": 32, "num_hidden_layers": 4, "vocab_size": 99, "state_size": 4},
        _tokens_alone,
    ),
    "jamba": Architecture(
        AutoModelForCausalLM,
        "jamba",
        {
            **_TEXT,
            "num_key_value_heads": 2,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "num_experts": 2,
            "num_experts_per_tok": 1,
            "mamba_d_state": 4,
            "mamba_dt_rank": 4,
            "use_mamba_kernels": False,
        },
    ),
    "wav2vec2 stable": Architecture(
        AutoModelForAudioClassification,
        "wav2vec2",
        {**_AUDIO, "do_stable_layer_norm": True, "feat_extract_norm": "layer"},
        _waves,
    ),
    "whisper": Architecture(AutoModelForSpeechSeq2Seq, "whisper", _SPEECH, _spectrograms),
    "swin": Architecture(
        AutoModelForImageClassification,
        "swin",
        {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4},
        _pixels,
    ),
    "convnext": Architecture(
        AutoModelForImageClassification,
        "convnext",
        {"hidden_sizes": [8, 16], "depths": [2, 2], "num_stages": 2},
        _pixels,
    ),
    "clip": Architecture(AutoModel, "clip", _CLIP, _pixels_and_tokens),
    "siglip": Architecture(AutoModel, "siglip", _CLIP, _pixels_and_tokens),
}
