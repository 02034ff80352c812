"""The output layer of a classifier, and whether the one of a checkpoint is kept."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from hf_freeze.tasks.heads import label_order, output_parameters
from hf_freeze.tasks.models import load_classifier
from tests.tiny import build

SIZES: dict[str, dict[str, Any]] = {
    "bert": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16},
    "roberta": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16},
    "gpt2": {"n_embd": 16, "n_layer": 1, "n_head": 2},
    "bart": {
        "d_model": 16,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 16,
        "decoder_ffn_dim": 16,
    },
}
OUTPUTS = {
    "bert": {"classifier.weight", "classifier.bias"},
    "roberta": {"classifier.out_proj.weight", "classifier.out_proj.bias"},
    "gpt2": {"score.weight"},
    "bart": {"classification_head.out_proj.weight", "classification_head.out_proj.bias"},
}


def trained_classifier(model_type: str, folder: Path, labels: list[str]) -> PreTrainedModel:
    """Saves a classifier whose output layer has values that no initialisation gives, and returns it."""
    config = {**SIZES[model_type], "vocab_size": 50, "num_labels": len(labels), "id2label": dict(enumerate(labels))}
    model = build(AutoModelForSequenceClassification, model_type, **config)
    with torch.no_grad():
        for name in OUTPUTS[model_type]:
            rows = torch.arange(1.0, len(labels) + 1)
            parameter = model.get_parameter(name)
            parameter.copy_(rows.view(-1, *[1] * (parameter.dim() - 1)).expand_as(parameter))
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("model_type", OUTPUTS)
class TestOutputLayer:
    def test_it_is_found_by_what_grows_with_the_labels(self, model_type: str) -> None:
        config = AutoConfig.for_model(model_type, **SIZES[model_type], vocab_size=50, num_labels=3)
        assert output_parameters(config, trust_remote_code=False) == dict.fromkeys(OUTPUTS[model_type], 0)

    def test_it_is_kept_for_the_same_labels(self, model_type: str, tmp_path: Path) -> None:
        old = trained_classifier(model_type, tmp_path, ["NEGATIVE", "POSITIVE"])
        model, fresh = load_classifier(
            str(tmp_path), labels=["negative", "positive"], problem_type="single_label_classification"
        )
        assert fresh == ()
        assert model.config.id2label == {0: "negative", 1: "positive"}
        for name, parameter in old.named_parameters():
            assert torch.equal(parameter, model.get_parameter(name)), name

    def test_its_rows_follow_the_order_of_the_labels(self, model_type: str, tmp_path: Path) -> None:
        old = trained_classifier(model_type, tmp_path, ["low", "medium", "high"])
        model, fresh = load_classifier(
            str(tmp_path), labels=["high", "low", "medium"], problem_type="single_label_classification"
        )
        assert fresh == ()
        for name, parameter in old.named_parameters():
            expected = parameter[[2, 0, 1]] if name in OUTPUTS[model_type] else parameter
            assert torch.equal(expected, model.get_parameter(name)), name

    def test_it_starts_anew_for_as_many_other_labels(
        self, model_type: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        old = trained_classifier(model_type, tmp_path, ["entailment", "contradiction"])
        with caplog.at_level(logging.INFO, logger="hf_freeze"):
            model, fresh = load_classifier(
                str(tmp_path), labels=["ham", "spam"], problem_type="single_label_classification"
            )
        assert set(fresh) == OUTPUTS[model_type]
        assert (
            "The checkpoint classifies entailment, contradiction and the data ham, spam: the output layer starts anew. "
            "Where these are the same labels by other names, list them in data.labels as the checkpoint spells them."
        ) in caplog.messages
        for name, parameter in old.named_parameters():
            now = model.get_parameter(name)
            assert now.requires_grad
            if name in OUTPUTS[model_type]:
                assert now.abs().max() < 0.5, (
                    name
                )  # the old values are 1 and 2, new ones are drawn with a spread of 0.02
                assert name.endswith("bias") or now.std() > 0, name
            else:
                assert torch.equal(parameter, now), name

    def test_it_starts_anew_for_another_number_of_labels(self, model_type: str, tmp_path: Path) -> None:
        trained_classifier(model_type, tmp_path, ["a", "b"])
        model, fresh = load_classifier(
            str(tmp_path), labels=["a", "b", "c"], problem_type="single_label_classification"
        )
        assert set(fresh) == OUTPUTS[model_type]
        assert model.config.num_labels == 3


def test_a_fresh_output_layer_follows_the_seed(tmp_path: Path) -> None:
    trained_classifier("bert", tmp_path, ["a", "b"])

    def load(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        model, _ = load_classifier(str(tmp_path), labels=["c", "d"], problem_type="single_label_classification")
        return model.get_parameter("classifier.weight")

    assert torch.equal(load(1), load(1))
    assert not torch.equal(load(1), load(2))


@pytest.mark.parametrize(
    ("old", "new", "order"),
    [
        (["a", "b"], ["a", "b"], [0, 1]),
        (["a", "b"], ["b", "A"], [1, 0]),
        (["LABEL_0", "LABEL_1"], ["0", "1"], [0, 1]),
        (["LABEL_0", "LABEL_1"], ["a", "b"], None),
        (["a", "b"], ["a", "b", "c"], None),
        (["a", "A"], ["a", "A"], None),
    ],
)
def test_labels_are_compared_without_regard_to_case(old: list[str], new: list[str], order: list[int] | None) -> None:
    assert label_order(old, new) == order
