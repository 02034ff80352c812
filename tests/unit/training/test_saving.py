"""What a run saves loads without hf_freeze: a plain Transformers folder, or a plain PEFT folder, with equal logits."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForAudioClassification,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from hf_freeze.plan import freeze_model, merge_adapters
from hf_freeze.training import FreezeTrainer
from tests.tiny import (
    build,
    tiny_bart,
    tiny_bert,
    tiny_gpt2,
    tiny_llama,
    tiny_t5,
    tiny_tokenizer,
    tiny_vit,
    tiny_wav2vec2,
)
from tests.unit.training.runs import arguments, rows

IDS = torch.randint(5, 99, (3, 10), generator=torch.Generator().manual_seed(0))
WORDS = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
PAIRS = {**WORDS, "decoder_input_ids": IDS}
PIXELS = {"pixel_values": torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))}

Case = tuple[Callable[[], PreTrainedModel], Any, dict[str, torch.Tensor]]


def tiny_bert3() -> PreTrainedModel:
    return tiny_bert(num_labels=3)


def tiny_neox() -> PreTrainedModel:
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64}
    return build(AutoModelForCausalLM, "gpt_neox", **sizes, vocab_size=99, pad_token_id=0)


def tiny_mixtral() -> PreTrainedModel:
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64}
    experts = {"num_key_value_heads": 2, "num_local_experts": 4, "vocab_size": 99, "pad_token_id": 0}
    return build(AutoModelForCausalLM, "mixtral", **sizes, **experts)


def tiny_modernbert() -> PreTrainedModel:
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64}
    tokens = {"vocab_size": 99, "pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2}
    return build(AutoModelForSequenceClassification, "modernbert", **sizes, **tokens, eos_token_id=3)


def tiny_deberta() -> PreTrainedModel:
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64}
    return build(AutoModelForSequenceClassification, "deberta-v2", **sizes, vocab_size=99, pad_token_id=0)


CASES: dict[str, Case] = {
    "bert": (tiny_bert3, AutoModelForSequenceClassification, WORDS),
    "modernbert": (tiny_modernbert, AutoModelForSequenceClassification, WORDS),
    "deberta": (tiny_deberta, AutoModelForSequenceClassification, WORDS),
    "gpt2": (tiny_gpt2, AutoModelForCausalLM, WORDS),
    "llama": (tiny_llama, AutoModelForCausalLM, WORDS),
    "neox": (tiny_neox, AutoModelForCausalLM, WORDS),
    "mixtral": (tiny_mixtral, AutoModelForCausalLM, WORDS),
    "bart": (tiny_bart, AutoModelForSeq2SeqLM, PAIRS),
    "t5": (tiny_t5, AutoModelForSeq2SeqLM, PAIRS),
    "vit": (tiny_vit, AutoModelForImageClassification, PIXELS),
}
# One linear layer of a block, by its own name, in each architecture.
TARGETS = {
    "bert": "query",
    "modernbert": "Wqkv",
    "deberta": "query_proj",
    "gpt2": "c_attn",
    "llama": "q_proj",
    "neox": "query_key_value",
    "mixtral": "q_proj",
    "bart": "q_proj",
    "t5": "q",
    "vit": "q_proj",
}


def moved(model: nn.Module) -> nn.Module:
    """Adds noise to whatever trains, as if it had been trained, and returns the model in eval mode."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def logits(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model.eval()(**batch).logits
    return result


def mixed(name: str, base: Path) -> nn.Module:
    """Frozen, LoRA and full blocks in one model that is loaded from a folder, as a released model would be."""
    make, auto_class, _ = CASES[name]
    make().save_pretrained(base)
    model = auto_class.from_pretrained(base)
    lora = {"peft_type": "LORA", "target_modules": [TARGETS[name]], "r": 2, "blocks": {"indices": [2]}}
    return moved(freeze_model(model, {"blocks": {"first": 2}}, (lora,)))


# Plain PEFT warns that it sets this option right by itself for GPT-2, whose linear layers are transposed.
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")
@pytest.mark.parametrize("name", CASES)
class TestMixedPlans:
    def test_plain_peft_reloads_them_exactly(self, tmp_path: Path, name: str) -> None:
        model = mixed(name, tmp_path / "base")
        _, auto_class, batch = CASES[name]
        expected = logits(model, batch)
        FreezeTrainer(model, arguments(tmp_path), freeze={"blocks": {"first": 2}}).save_model(str(tmp_path / "out"))
        base = auto_class.from_pretrained(tmp_path / "base")
        reloaded = peft.PeftModel.from_pretrained(base, tmp_path / "out")
        torch.testing.assert_close(logits(reloaded, batch), expected, rtol=0, atol=0)
        merged = reloaded.merge_and_unload()
        torch.testing.assert_close(logits(merged, batch), expected, rtol=0, atol=1e-5)

    def test_merging_in_memory_gives_a_plain_model(self, tmp_path: Path, name: str) -> None:
        model = mixed(name, tmp_path / "base")
        _, auto_class, batch = CASES[name]
        expected = logits(model, batch)
        merged = merge_adapters(model)
        torch.testing.assert_close(logits(merged, batch), expected, rtol=0, atol=1e-5)
        merged.save_pretrained(tmp_path / "merged")
        reloaded = auto_class.from_pretrained(tmp_path / "merged")
        torch.testing.assert_close(logits(reloaded, batch), expected, rtol=0, atol=1e-5)


METHODS: dict[str, dict[str, Any]] = {
    "lora": {"peft_type": "LORA", "target_modules": ["query", "value"]},
    "dora": {"peft_type": "LORA", "target_modules": ["query", "value"], "use_dora": True},
    "ia3": {"peft_type": "IA3"},
    "loha": {"peft_type": "LOHA", "target_modules": ["query", "value"]},
    "oft": {"peft_type": "OFT", "target_modules": ["query", "value"], "oft_block_size": 8},
    "ln_tuning": {"peft_type": "LN_TUNING", "target_modules": ["LayerNorm"]},
    "prompt_tuning": {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3},
}


# Plain PEFT warns of every LayerNorm that LN tuning is loaded into, though LayerNorm is what it is for.
@pytest.mark.filterwarnings("ignore:Unsupported layer type")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["alone", "mixed"])
def test_every_method_is_reloaded_exactly_by_plain_peft(tmp_path: Path, method: str, kind: str) -> None:
    tiny_bert3().save_pretrained(tmp_path / "base")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    entry = METHODS[method]
    freeze = {"blocks": {"first": 2}} if kind == "mixed" else None
    if kind == "mixed" and method != "prompt_tuning":
        entry = {**entry, "blocks": {"indices": [2]}}
    trainer = FreezeTrainer(model, arguments(tmp_path), train_dataset=rows(), freeze=freeze, adapters=[entry])
    trainer.train()
    expected = logits(trainer.model, WORDS)
    trainer.save_model(str(tmp_path / "out"))
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    before = logits(base, WORDS)
    reloaded = logits(peft.PeftModel.from_pretrained(base, tmp_path / "out"), WORDS)
    torch.testing.assert_close(reloaded, expected, rtol=0, atol=0)
    assert not torch.equal(reloaded, before)


def test_a_peft_folder_loads_through_transformers(tmp_path: Path) -> None:
    model = mixed("bert", tmp_path / "base")
    expected = logits(model, WORDS)
    FreezeTrainer(model, arguments(tmp_path), freeze={"blocks": {"first": 2}}).save_model(str(tmp_path / "out"))
    reloaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(reloaded, WORDS), expected, rtol=0, atol=0)
    assert expected.shape == (3, 3)
    automatic = peft.AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(automatic, WORDS), expected, rtol=0, atol=0)


def test_whole_blocks_and_heads_are_listed_by_their_largest_module(tmp_path: Path) -> None:
    model = mixed("bert", tmp_path / "base")
    FreezeTrainer(model, arguments(tmp_path), freeze={"blocks": {"first": 2}}).save_model(str(tmp_path / "out"))
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["bert.encoder.layer.3", "bert.pooler", "classifier"]
    assert config["task_type"] == "SEQ_CLS"


def test_biases_beside_adapters_are_reloaded(tmp_path: Path) -> None:
    tiny_bert3().save_pretrained(tmp_path / "base")
    lora = {"peft_type": "LORA", "target_modules": ["query"], "blocks": {"last": 1}}
    freeze = {"blocks": "all", "always_train": ["*.layer.[012].*.bias"]}
    model = moved(freeze_model(AutoModelForSequenceClassification.from_pretrained(tmp_path / "base"), freeze, (lora,)))
    expected = logits(model, WORDS)
    FreezeTrainer(model, arguments(tmp_path), freeze=freeze).save_model(str(tmp_path / "out"))
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    reloaded = peft.PeftModel.from_pretrained(base, tmp_path / "out")
    torch.testing.assert_close(logits(reloaded, WORDS), expected, rtol=0, atol=0)


def test_a_tied_head_that_trained_is_written_whole_and_the_log_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny_gpt2().save_pretrained(tmp_path / "base")
    lora = {"peft_type": "LORA", "target_modules": ["c_attn"], "blocks": {"last": 1}}
    freeze = {"embeddings": "full", "blocks": {"first": 2}}
    model = moved(freeze_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), freeze, (lora,)))
    expected = logits(model, WORDS)
    trainer = FreezeTrainer(model, arguments(tmp_path), freeze=freeze, activation_cache={"enabled": False})
    with caplog.at_level(logging.WARNING, logger="hf_freeze"):
        trainer.save_model(str(tmp_path / "out"))
    assert caplog.messages == [
        (
            f"{tmp_path / 'out'}: PEFT has no place for transformer.wte.weight, which trained in full (it is tied, or "
            "shares a module with adapters). The merged model is written whole instead."
        )
    ]
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(reloaded, WORDS), expected, rtol=0, atol=1e-5)
    assert trainer.plan.treatments["embeddings"] == "full"


@pytest.mark.parametrize("name", CASES)
def test_without_adapters_the_folder_is_plain(tmp_path: Path, name: str) -> None:
    make, auto_class, batch = CASES[name]
    trainer = FreezeTrainer(moved(freeze_model(make(), {"blocks": {"first": 2}})), arguments(tmp_path))
    trainer.save_model(str(tmp_path / "out"))
    reloaded = auto_class.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(reloaded, batch), logits(trainer.model, batch), rtol=0, atol=0)
    assert not list((tmp_path / "out").glob("*.bin"))


def test_the_tokenizer_is_saved_beside_either_kind(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(["one two three"])
    for name, adapters in (("plain", ()), ("peft", ({"peft_type": "LORA", "target_modules": ["query"]},))):
        trainer = FreezeTrainer(tiny_bert(), arguments(tmp_path), processing_class=tokenizer, adapters=adapters)
        trainer.save_model(str(tmp_path / name))
        assert (tmp_path / name / "tokenizer.json").exists()


def test_audio_models_are_saved_plainly(tmp_path: Path) -> None:
    batch = {"input_values": torch.randn(2, 800, generator=torch.Generator().manual_seed(0))}
    trainer = FreezeTrainer(moved(freeze_model(tiny_wav2vec2(), {"blocks": {"first": 2}})), arguments(tmp_path))
    trainer.save_model(str(tmp_path / "out"))
    reloaded = AutoModelForAudioClassification.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(reloaded, batch), logits(trainer.model, batch), rtol=0, atol=0)
