"""A hundred and more architectures as tiny models with random weights, and a batch for each.

Every model drops out unless its name says otherwise, has at least three blocks in its first stack, and returns a loss.
Token ids are padded on the right, and are real at five positions to all of them. Shapes: `B` batch, `L` sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import pad
from transformers import (
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForSpeechSeq2Seq,
    AutoModelForVideoClassification,
    AutoModelForVisualQuestionAnswering,
    PreTrainedModel,
)

from tests import tiny

NUM_ROWS = 4
# Odd, so that models which pad inside to whole windows do so.
LENGTH = 15
# How many positions of each row are real.
LENGTHS = (15, 11, 8, 5)

Batch = dict[str, Any]


@dataclass(frozen=True)
class Architecture:
    """One architecture: which class, which config, and which batch."""

    auto_class: Any
    model_type: str
    config: Mapping[str, Any]
    batch: Callable[[], Batch]

    def build(self) -> PreTrainedModel:
        """Builds the model, in train mode, with weights so large that a wrong mask or position moves the loss."""
        model = tiny.build(self.auto_class, self.model_type, **self.config)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(0, 0.3, generator=generator)
        model.train()
        return model


def _draw(*shape: int, low: int = 5, high: int = tiny.VOCAB_SIZE) -> torch.Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(1))


def _noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def _padded(length: int = LENGTH) -> Batch:
    """Draws token ids (B, L) and their mask, padded on the right."""
    mask = (torch.arange(length) < torch.tensor([length, *LENGTHS[1:]])[:, None]).long()
    return {"input_ids": _draw(NUM_ROWS, length) * mask, "attention_mask": mask}


def _classes() -> torch.Tensor:
    return torch.tensor([0, 1, 1, 0])


def _texts() -> Batch:
    return {**_padded(), "labels": _classes()}


def _ended_texts() -> Batch:
    """Texts whose last real token is the end of the sequence, where T5 reads its classes."""
    batch = _texts()
    batch["input_ids"][range(NUM_ROWS), torch.tensor(LENGTHS) - 1] = 1
    return batch


def _whole_texts() -> Batch:
    """Texts that all have the full length: shorter ones would make BigBird replace its sparse attention for good."""
    ids = _draw(NUM_ROWS, LENGTH)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": _classes()}


def _texts_without_mask() -> Batch:
    return {"input_ids": _padded()["input_ids"], "labels": _classes()}


def _texts_of_one_width() -> Batch:
    """Texts that are padded to one length, as with `padding="max_length"`."""
    return {name: value if name == "labels" else pad(value, (0, 2)) for name, value in _texts().items()}


def _texts_with_boxes() -> Batch:
    return {**_texts(), "bbox": _draw(NUM_ROWS, LENGTH, 1, low=0, high=50).expand(-1, -1, 4).contiguous()}


def _tokens() -> Batch:
    tokens = _padded()
    return {**tokens, "labels": tokens["input_ids"].masked_fill(tokens["attention_mask"] == 0, -100)}


def _tokens_of_one_width() -> Batch:
    """Token ids to predict that are padded to one length."""
    return {name: pad(value, (0, 2), value=-100 if name == "labels" else 0) for name, value in _tokens().items()}


def _tokens_without_mask() -> Batch:
    tokens = _draw(NUM_ROWS, LENGTH)
    return {"input_ids": tokens, "labels": tokens.clone()}


def _images() -> Batch:
    return {"pixel_values": _noise(NUM_ROWS, 3, 32, 32), "labels": _classes()}


def _films() -> Batch:
    return {"pixel_values": _noise(NUM_ROWS, 2, 3, 32, 32), "labels": _classes()}


def _waves(longest: int = 720) -> Batch:
    """Recordings (B, L) that are padded to 800 samples."""
    mask = (torch.arange(800) < torch.tensor([longest, 640, 480, 320])[:, None]).long()
    return {"input_values": _noise(NUM_ROWS, 800) * mask, "attention_mask": mask, "labels": _classes()}


def _waves_to_the_longest() -> Batch:
    return _waves(800)


def _spectrograms() -> Batch:
    return {"input_features": _noise(NUM_ROWS, 8, 100), "labels": _draw(NUM_ROWS, 8)}


def _classified_spectrograms() -> Batch:
    return {"input_features": _noise(NUM_ROWS, 8, 100), "labels": _classes()}


def _frames() -> Batch:
    mask = (torch.arange(64) < torch.tensor([64, 48, 32, 16])[:, None]).long()
    return {"input_features": _noise(NUM_ROWS, 64, 8), "attention_mask": mask, "labels": _draw(NUM_ROWS, 8)}


def _patches() -> Batch:
    return {"input_values": _noise(NUM_ROWS, 40, 16), "labels": _classes()}


def _pairs() -> Batch:
    return {**_padded(), "pixel_values": _noise(NUM_ROWS, 3, 32, 32), "return_loss": True}


def _even_pairs() -> Batch:
    """Texts of 17 positions and images of 17: their patches and the class token."""
    return {**_pairs(), **_padded(17)}


def _questions() -> Batch:
    return {
        **_padded(),
        "pixel_values": _noise(NUM_ROWS, 3, 32, 32),
        "labels": _draw(NUM_ROWS, 2, low=0, high=2).float(),
    }


_DROPOUT = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "hidden_dropout": 0.1}
_SIZES = {"num_hidden_layers": 3, "num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 64}
_BLOCKS = {**_SIZES, **_DROPOUT}
_WORDS = {"vocab_size": tiny.VOCAB_SIZE, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
_TEXT = (
    {**_BLOCKS, **_WORDS, "max_position_embeddings": 64, "attention_window": [4] * 3, "attention_type": "original_full"}
    | {"entity_vocab_size": 9, "entity_emb_size": 8, "input_embedding_size": 16, "output_embedding_size": 16}
    | {"embedding_size": 32, "languages": ["en_XX"], "default_language": "en_XX"}
)
_DECODER = {**_SIZES, **_WORDS, "max_position_embeddings": 64, "num_key_value_heads": 2, "head_dim": 8} | {
    "attention_dropout": 0.1,
    "hidden_dropout": 0.1,
    "resid_pdrop": 0.1,
    "embd_pdrop": 0.1,
}
# Older configs count under names of their own.
_GPT = (
    {**_WORDS, "resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1, "dropout": 0.1, "attention_dropout": 0.1}
    | {"hidden_dropout": 0.1, "resid_dropout": 0.1, "embed_dropout": 0.1}
    | {"n_positions": 64, "max_seq_len": 64, "context_length": 64}
    | {"n_embd": 32, "d_model": 32, "dim": 32, "emb_dim": 32, "hidden_size": 32, "attention_hidden_size": 32}
    | {"d_inner": 64, "hidden_dim": 64, "dff": 64, "ffn_dim": 64}
    | {"n_layer": 3, "n_layers": 3, "num_layers": 3, "n_head": 4, "n_heads": 4, "num_heads": 4, "attention_heads": 4}
    | {"rotary_dim": 4, "attention_types": [[["global", "local", "global"], 1]]}
    # The frozen blocks of RWKV are in eval mode, where it would overwrite states that gradients need.
    | {"use_cache": False}
)
_EXPERTS = {"num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2} | {
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}
_LATENT = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8} | {
    "num_key_value_heads": 4,
    "first_k_dense_replace": 1,
}
_NESTED = (
    {"vocab_size_per_layer_input": tiny.VOCAB_SIZE, "hidden_size_per_layer_input": 8, "laurel_rank": 4}
    | {"num_hidden_layers": 4, "num_kv_shared_layers": 1, "layer_types": ["sliding_attention", "full_attention"] * 2}
    | {"intermediate_size": [64] * 4, "activation_sparsity_pattern": [0.0] * 4}
)
_LINEAR = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
} | {"layer_types": ["linear_attention", "full_attention", "linear_attention"]}
_JAMBA = {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1} | {
    "mamba_d_state": 4,
    "mamba_dt_rank": 4,
    "use_mamba_kernels": False,
}
_ZAMBA = {
    "num_hidden_layers": 4,
    "layers_block_type": ["mamba", "hybrid"] * 2,
    "num_mem_blocks": 1,
    "chunk_size": 8,
} | {"mamba_d_state": 4, "n_mamba_heads": 8, "mamba_headdim": 8, "mamba_ngroups": 1, "use_mamba_kernels": False}
_TWO_STACKS = (
    {**_WORDS, "d_model": 32, "num_hidden_layers": 3, "max_position_embeddings": 64}
    | {"encoder_layers": 3, "encoder_attention_heads": 4, "encoder_ffn_dim": 64}
    | {"decoder_layers": 3, "decoder_attention_heads": 4, "decoder_ffn_dim": 64}
    | {"max_encoder_position_embeddings": 64, "max_decoder_position_embeddings": 64}
    | {"decoder_start_token_id": 2, "forced_eos_token_id": None, "attention_type": "original_full"}
    | {"attention_window": 4, "block_size": 4, "num_global_tokens": 2}
    | {"num_experts": 2, "encoder_sparse_step": 2, "decoder_sparse_step": 2}
    | {"dropout": 0.1, "attention_dropout": 0.1, "activation_dropout": 0.1}
)
_PROPHETNET = (
    {**_WORDS, "hidden_size": 32, "max_position_embeddings": 64, "ngram": 2, "num_buckets": 8, "dropout": 0.1}
    | {"num_encoder_layers": 3, "num_encoder_attention_heads": 4, "encoder_ffn_dim": 64}
    | {"num_decoder_layers": 3, "num_decoder_attention_heads": 4, "decoder_ffn_dim": 64}
)
_T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 3, "num_heads": 4, "vocab_size": tiny.VOCAB_SIZE} | {
    "num_decoder_layers": 3,
    "num_experts": 2,
    "decoder_start_token_id": 0,
    "dropout_rate": 0.1,
}
_FUNNEL = {"block_sizes": [2, 2, 2], "d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 64}
_SPEECH = {**_TWO_STACKS, "max_source_positions": 50, "max_target_positions": 64, "num_mel_bins": 8}
_IMAGE = {**_BLOCKS, "image_size": 32, "patch_size": 8}
_SWIN = {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [1, 1, 2], "num_heads": [2, 2, 2]} | {
    "window_size": 4,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
}
_HIERA = (
    {"image_size": [32, 32], "patch_size": [3, 3], "patch_stride": [4, 4], "patch_padding": [1, 1], "embed_dim": 16}
    | {"depths": [1, 1, 2], "num_heads": [1, 2, 2], "num_query_pool": 2, "query_stride": [2, 2]}
    | {"masked_unit_size": [4, 4], "masked_unit_attention": [True, True, False]}
)
_PYRAMID = (
    {**_DROPOUT, "num_encoder_blocks": 2, "depths": [3, 3], "sr_ratios": [4, 2], "hidden_sizes": [16, 32]}
    | {"patch_sizes": [7, 3], "strides": [4, 2], "num_attention_heads": [2, 4], "mlp_ratios": [2, 2]}
    | {"decoder_hidden_size": 16, "image_size": 32, "sequence_reduction_ratios": [2, 1]}
)
_STAGES = {"embedding_size": 8, "hidden_sizes": [8, 16, 16], "depths": [2, 2, 2], "num_stages": 3} | {
    "layer_type": "basic",
    "drop_path_rate": 0.1,
}
_CLIP = {
    "text_config": {**_TEXT, "bos_token_id": 1, "eos_token_id": 98, "attention_dropout": 0.1},
    "vision_config": {**_IMAGE, "attention_dropout": 0.1},
    "projection_dim": 16,
}
_AUDIO = (
    {**_BLOCKS, "conv_dim": (16, 16), "conv_stride": (4, 4), "conv_kernel": (8, 8), "num_feat_extract_layers": 2}
    | {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2, "position_embeddings_type": "relative"}
    | {"attention_dropout": 0.1, "activation_dropout": 0.1, "feat_proj_dropout": 0.1, "layerdrop": 0.0}
    | {"apply_spec_augment": True, "mask_time_prob": 0.3, "mask_time_length": 2}
)
_STABLE = {"do_stable_layer_norm": True, "feat_extract_norm": "layer"}
_SPARSE = {"attention_type": "block_sparse", "block_size": 2, "num_random_blocks": 1}
_CANINE = {"downsampling_rate": 2, "num_hash_buckets": 64, "local_transformer_stride": 4}
_CONVOLUTION = {"conv_kernel_size": 3, "relative_attention": True, "norm_rel_ebd": "layer_norm", "position_buckets": 8}

_Classifier = AutoModelForSequenceClassification
_Decoder = AutoModelForCausalLM
_Seq2Seq = AutoModelForSeq2SeqLM
_Image = AutoModelForImageClassification
_Audio = AutoModelForAudioClassification
_Speech = AutoModelForSpeechSeq2Seq


def _family(
    names: str, auto_class: Any, batch: Callable[[], Batch], config: Mapping[str, Any]
) -> dict[str, Architecture]:
    return {name: Architecture(auto_class, name, config, batch) for name in names.split()}


_TEXT_ENCODERS = {
    **_family(
        "albert bert big_bird camembert convbert data2vec-text deberta deberta-v2 electra ernie esm eurobert gte ibert "
        "longformer luke megatron-bert mobilebert modernbert mpnet mra nomic_bert nystromformer rembert roberta "
        "roberta-prelayernorm roc_bert roformer squeezebert xlm-roberta xlm-roberta-xl xmod yoso",
        _Classifier,
        _texts,
        _TEXT,
    ),
    **_family("canine", _Classifier, _texts, {**_BLOCKS, **_CANINE}),
    **_family("distilbert flaubert xlm xlnet", _Classifier, _texts, _GPT),
    **_family("fnet", _Classifier, _texts_without_mask, _TEXT),
    **_family("funnel", _Classifier, _texts, {**_WORDS, **_FUNNEL}),
    **_family("layoutlm", _Classifier, _texts_with_boxes, _TEXT),
    **_family("lilt", _Classifier, _texts_with_boxes, {**_TEXT, "hidden_size": 48, "channel_shrink_ratio": 2}),
    **{
        f"{name} at one width": Architecture(_Classifier, name, _TEXT, _texts_of_one_width)
        for name in ("bert", "convbert", "longformer", "mobilebert", "nystromformer", "yoso")
    },
    "xlnet at one width": Architecture(_Classifier, "xlnet", _GPT, _texts_of_one_width),
    "bert decoder": Architecture(_Decoder, "bert", {**_TEXT, "is_decoder": True}, _tokens),
    "bert masked": Architecture(AutoModelForMaskedLM, "bert", _TEXT, _tokens),
    "big_bird sparse": Architecture(_Classifier, "big_bird", {**_TEXT, **_SPARSE}, _whole_texts),
    "deberta-v2 with convolution": Architecture(_Classifier, "deberta-v2", {**_TEXT, **_CONVOLUTION}, _texts),
    "deberta-v2 with convolution, no dropout": Architecture(
        _Classifier, "deberta-v2", {**_TEXT, **_CONVOLUTION, **dict.fromkeys(_DROPOUT, 0.0)}, _texts
    ),
}
_DECODERS = {
    **_family(
        "biogpt cohere gemma gemma2 gemma3_text gpt_neox granite llama mistral mixtral nanochat olmo2 phi phi3 qwen2 "
        "qwen3 smollm3 stablelm starcoder2",
        _Decoder,
        _tokens,
        _DECODER,
    ),
    **_family("gpt_oss olmoe qwen2_moe qwen3_moe", _Decoder, _tokens, {**_DECODER, **_EXPERTS}),
    **_family("bloom codegen ctrl gpt2 gpt_bigcode gpt_neo gptj mpt openai-gpt xglm", _Decoder, _tokens, _GPT),
    **_family("mamba rwkv", _Decoder, _tokens_without_mask, {**_GPT, "num_hidden_layers": 3, "state_size": 4}),
    **_family("deepseek_v3", _Decoder, _tokens, {**_DECODER, **_EXPERTS, **_LATENT}),
    **_family("falcon", _Decoder, _tokens, {**_BLOCKS, **_WORDS, "attention_dropout": 0.1}),
    **_family("gemma3n_text", _Decoder, _tokens, {**_DECODER, **_NESTED}),
    **_family("jamba", _Decoder, _tokens, {**_DECODER, **_EXPERTS, **_JAMBA}),
    **_family("lfm2", _Decoder, _tokens, {**_DECODER, "layer_types": ["conv", "full_attention", "conv"]}),
    **_family("opt", _Decoder, _tokens, {**_DECODER, "ffn_dim": 64, "word_embed_proj_dim": 16, "dropout": 0.1}),
    **_family("qwen3_next", _Decoder, _tokens, {**_DECODER, **_EXPERTS, **_LINEAR}),
    **_family("recurrent_gemma", _Decoder, _tokens, {**_DECODER, "lru_width": 32, "attention_window_size": 8}),
    **_family("zamba2", _Decoder, _tokens, {**_DECODER, **_ZAMBA}),
    "llama classifier": Architecture(_Classifier, "llama", _DECODER, _texts),
    "mixtral with router logits": Architecture(
        _Decoder, "mixtral", {**_DECODER, "output_router_logits": True}, _tokens
    ),
}
_ENCODER_DECODERS = {
    **_family(
        "bart bigbird_pegasus blenderbot blenderbot-small led m2m_100 marian mbart mvp nllb-moe pegasus pegasus_x "
        "plbart",
        _Seq2Seq,
        _tokens,
        _TWO_STACKS,
    ),
    **_family("longt5 mt5 switch_transformers t5 umt5", _Seq2Seq, _tokens, _T5),
    **_family("prophetnet", _Seq2Seq, _tokens, _PROPHETNET),
    "switch_transformers at one width": Architecture(_Seq2Seq, "switch_transformers", _T5, _tokens_of_one_width),
    "t5 classifier": Architecture(_Classifier, "t5", _T5, _ended_texts),
}
_IMAGES_AND_SOUND = {
    **_family("beit data2vec-vision dinov2 dinov2_with_registers ijepa vit vit_msn", _Image, _images, _IMAGE),
    # The class for distilled models comes first in transformers' table, and has no loss.
    **_family("deit", _Image, _images, {**_IMAGE, "architectures": ["DeiTForImageClassification"]}),
    **_family("convnext resnet", _Image, _images, _STAGES),
    **_family("hiera", _Image, _images, _HIERA),
    **_family("pvt segformer", _Image, _images, _PYRAMID),
    **_family("swin swinv2", _Image, _images, _SWIN),
    "siglip classifier": Architecture(_Image, "siglip", {"vision_config": _IMAGE, "text_config": _TEXT}, _images),
    **_family("videomae", AutoModelForVideoClassification, _films, {**_IMAGE, "num_frames": 2, "tubelet_size": 1}),
    **_family("clip", AutoModel, _pairs, _CLIP),
    "clip with as many words as patches": Architecture(AutoModel, "clip", _CLIP, _even_pairs),
    **_family("vilt", AutoModelForVisualQuestionAnswering, _questions, {**_IMAGE, **_TEXT, "max_image_length": -1}),
    **_family(
        "data2vec-audio hubert sew unispeech unispeech-sat wav2vec2 wav2vec2-conformer wavlm", _Audio, _waves, _AUDIO
    ),
    "wav2vec2 padded to the longest": Architecture(_Audio, "wav2vec2", _AUDIO, _waves_to_the_longest),
    "wav2vec2 stable": Architecture(_Audio, "wav2vec2", {**_AUDIO, **_STABLE}, _waves),
    "wav2vec2 with layerdrop": Architecture(_Audio, "wav2vec2", {**_AUDIO, "layerdrop": 0.5}, _waves),
    "wav2vec2 with weighted layers": Architecture(
        _Audio, "wav2vec2", {**_AUDIO, "use_weighted_layer_sum": True}, _waves
    ),
    **_family("audio-spectrogram-transformer", _Audio, _patches, {**_IMAGE, "max_length": 40, "num_mel_bins": 16}),
    **_family("speech_to_text", _Speech, _frames, {**_SPEECH, "conv_channels": 16, "input_feat_per_channel": 8}),
    **_family("whisper", _Speech, _spectrograms, _SPEECH),
    "whisper classifier": Architecture(_Audio, "whisper", _SPEECH, _classified_spectrograms),
}

ZOO: dict[str, Architecture] = {**_TEXT_ENCODERS, **_DECODERS, **_ENCODER_DECODERS, **_IMAGES_AND_SOUND}
