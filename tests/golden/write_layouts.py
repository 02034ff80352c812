"""Writes the layouts of full-size models, made without weights, to the folder beside it.

`python -m tests.golden.write_layouts`, from the root of the repository, writes all of them anew.

A change in these files is a change in what is frozen and trained: look at each before it is committed.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForImageTextToText,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForSpeechSeq2Seq,
    AutoModelForTokenClassification,
)

from hf_freeze.plan.layout import ROLE_EMBEDDINGS, ROLE_HEAD, Layout, block_role, find_layout

FOLDER = Path(__file__).parent / "layouts"

_BLOOM_560M = {"hidden_size": 1024, "n_layer": 24, "n_head": 16, "vocab_size": 250880}
_DEBERTA_V3_BASE = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "type_vocab_size": 0,
    "relative_attention": True,
    "max_relative_positions": -1,
    "position_buckets": 256,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
}
_BART_BASE = {
    "d_model": 768,
    "encoder_layers": 6,
    "decoder_layers": 6,
    "encoder_attention_heads": 12,
    "decoder_attention_heads": 12,
    "encoder_ffn_dim": 3072,
    "decoder_ffn_dim": 3072,
}
_WHISPER_SMALL = {
    "d_model": 768,
    "encoder_layers": 12,
    "decoder_layers": 12,
    "num_hidden_layers": 12,
    "encoder_attention_heads": 12,
    "decoder_attention_heads": 12,
    "encoder_ffn_dim": 3072,
    "decoder_ffn_dim": 3072,
}
_WAV2VEC2_LARGE_LV60 = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "do_stable_layer_norm": True,
    "feat_extract_norm": "layer",
    "conv_bias": True,
}
_MINILM_L6 = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
_OPT_350M = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "ffn_dim": 4096,
    "word_embed_proj_dim": 512,
    "do_layer_norm_before": False,
}

# The classes' own defaults are full-size models; where a famous one differs, what differs is written out.
FAMILIES: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "bart-base": (AutoModelForSeq2SeqLM, "bart", _BART_BASE),
    "bart-large-classifier": (AutoModelForSequenceClassification, "bart", {}),
    "beit-base": (AutoModelForImageClassification, "beit", {}),
    "bert-base": (AutoModelForSequenceClassification, "bert", {}),
    "bert-base-masked": (AutoModelForMaskedLM, "bert", {}),
    "bert-base-tokens": (AutoModelForTokenClassification, "bert", {}),
    "big_bird-base": (AutoModelForSequenceClassification, "big_bird", {}),
    "bloom-560m": (AutoModelForCausalLM, "bloom", _BLOOM_560M),
    "canine": (AutoModelForSequenceClassification, "canine", {}),
    "clip-base": (AutoModel, "clip", {}),
    "convnext-tiny": (AutoModelForImageClassification, "convnext", {}),
    "deberta-v3-base": (AutoModelForSequenceClassification, "deberta-v2", _DEBERTA_V3_BASE),
    "dinov2-base": (AutoModelForImageClassification, "dinov2", {}),
    "distilbert-base": (AutoModelForSequenceClassification, "distilbert", {}),
    "electra-small": (AutoModelForSequenceClassification, "electra", {}),
    "falcon-7b": (AutoModelForCausalLM, "falcon", {}),
    "gemma-7b": (AutoModelForCausalLM, "gemma", {}),
    "gpt2": (AutoModelForCausalLM, "gpt2", {}),
    "gpt_neox-20b": (AutoModelForCausalLM, "gpt_neox", {}),
    "hubert-base": (AutoModelForAudioClassification, "hubert", {}),
    "jamba": (AutoModelForCausalLM, "jamba", {}),
    "llama-7b": (AutoModelForCausalLM, "llama", {}),
    "llama-7b-classifier": (AutoModelForSequenceClassification, "llama", {}),
    "llava-7b": (AutoModelForImageTextToText, "llava", {}),
    "m2m_100": (AutoModelForSeq2SeqLM, "m2m_100", {}),
    "mamba": (AutoModelForCausalLM, "mamba", {}),
    "minilm-l6": (AutoModelForSequenceClassification, "bert", _MINILM_L6),
    "mistral-7b": (AutoModelForCausalLM, "mistral", {}),
    "mixtral-8x7b": (AutoModelForCausalLM, "mixtral", {}),
    "modernbert-base": (AutoModelForSequenceClassification, "modernbert", {}),
    "mpnet-base": (AutoModelForSequenceClassification, "mpnet", {}),
    "opt-350m": (AutoModelForCausalLM, "opt", _OPT_350M),
    "pegasus-large": (AutoModelForSeq2SeqLM, "pegasus", {}),
    "phi-1": (AutoModelForCausalLM, "phi", {}),
    "qwen3": (AutoModelForCausalLM, "qwen3", {}),
    "roberta-base": (AutoModelForSequenceClassification, "roberta", {}),
    "roformer-base": (AutoModelForSequenceClassification, "roformer", {}),
    "siglip-base": (AutoModel, "siglip", {}),
    "swin-tiny": (AutoModelForImageClassification, "swin", {}),
    "t5-small": (AutoModelForSeq2SeqLM, "t5", {}),
    "vit-base": (AutoModelForImageClassification, "vit", {}),
    "wav2vec2-base": (AutoModelForAudioClassification, "wav2vec2", {}),
    "wav2vec2-large-lv60": (AutoModelForAudioClassification, "wav2vec2", _WAV2VEC2_LARGE_LV60),
    "whisper-small": (AutoModelForSpeechSeq2Seq, "whisper", _WHISPER_SMALL),
    "xlnet-large": (AutoModelForSequenceClassification, "xlnet", {}),
}


def full_size_layout(family: str) -> Layout:
    """Finds the layout of one family's model, which is made without weights.

    Args:
        family: A name in `FAMILIES`.
    """
    auto_class, model_type, config = FAMILIES[family]
    with torch.device("meta"):
        model = auto_class.from_config(AutoConfig.for_model(model_type, **config))
    return find_layout(model)


def described(layout: Layout) -> dict[str, Any]:
    """Returns what a golden file holds of a layout.

    Args:
        layout: The layout of one model.
    """
    sizes = Counter[str]()
    for parameter in layout.parameters:
        sizes[parameter.role] += parameter.numel
    held = {path for paths in layout.modules.values() for path in paths}
    return {
        "model_class": layout.model_class,
        "stacks": [
            {
                "name": stack.name,
                "path": stack.path,
                "num_blocks": stack.num_blocks,
                "parameters_of_blocks": _runs([sizes[block_role(stack.name, i)] for i in range(stack.num_blocks)]),
            }
            for stack in layout.stacks
        ],
        "straddlers": list(layout.straddlers),
        **{
            role: {
                "parameters": sizes[role],
                "modules": list(layout.modules[role]),
                "held_by_straddlers": [
                    parameter.name
                    for parameter in layout.parameters
                    if parameter.role == role and not any(parameter.name.startswith(f"{path}.") for path in held)
                ],
            }
            for role in (ROLE_EMBEDDINGS, ROLE_HEAD)
        },
        "constant": [parameter.name for parameter in layout.parameters if parameter.constant],
        "tied": {parameter.name: list(parameter.aliases) for parameter in layout.parameters if parameter.aliases},
        "output_embedding": [parameter.name for parameter in layout.parameters if parameter.output_embedding],
        "outside_base": [parameter.name for parameter in layout.parameters if parameter.outside_base],
    }


def _runs(numbers: list[int]) -> list[str]:
    """Returns `12 x 7087872` for twelve equal numbers in a row."""
    return [f"{len(list(run))} x {number}" for number, run in itertools.groupby(numbers)]


def main() -> None:
    """Writes one file per family and removes those of families that are gone."""
    FOLDER.mkdir(exist_ok=True)
    for path in FOLDER.glob("*.json"):
        if path.stem not in FAMILIES:
            path.unlink()
    for family in FAMILIES:
        text = json.dumps(described(full_size_layout(family)), indent=2)
        (FOLDER / f"{family}.json").write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
