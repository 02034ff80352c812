"""The options of a run that change how batches are made or losses computed change nothing about caching."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import nn
from transformers import Seq2SeqTrainingArguments, default_data_collator

from hf_freeze.training import FreezeSeq2SeqTrainer
from tests.tiny import NUM_BLOCKS, tiny_bert, tiny_gpt2, tiny_llama, tiny_t5, tiny_tokenizer
from tests.unit.training.cached import (
    FROZEN,
    assert_caching_changes_nothing,
    dropping_bert,
    padding,
    sentences,
    trained,
)
from tests.unit.training.runs import arguments

LORA = {"peft_type": "LORA", "target_modules": ["query", "value"], "r": 4, "lora_dropout": 0.1}
WORKERS = {"dataloader_num_workers": 2, "dataloader_persistent_workers": True}


def test_losses_of_ten_steps_and_both_evaluations_are_equal(tmp_path: Path) -> None:
    cold, warm = assert_caching_changes_nothing(tmp_path)
    assert len(cold.losses) == 10
    assert len(cold.evaluations) == 2
    assert cold.cache.stats.built > 0
    assert cold.losses == warm.losses


@pytest.mark.parametrize("depth", range(1, NUM_BLOCKS + 1))
def test_every_depth(tmp_path: Path, depth: int) -> None:
    cold, _ = assert_caching_changes_nothing(tmp_path, freeze={"blocks": {"first": depth}})
    assert cold.cache.plan.depth == depth


@pytest.mark.parametrize(
    "keywords",
    [
        {"freeze": FROZEN, "adapters": [{**LORA, "blocks": {"last": 2}}]},
        {"freeze": None, "adapters": [{**LORA, "blocks": {"indices": [3]}}]},
        {"freeze": FROZEN, "lr_multipliers": {"block_decay": 0.5}},
    ],
    ids=["frozen and adapted", "adapted", "multipliers"],
)
def test_what_trains_above_the_prefix(tmp_path: Path, keywords: dict[str, Any]) -> None:
    assert_caching_changes_nothing(tmp_path, **keywords)


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_accumulation_steps": 4, "per_device_train_batch_size": 2},
        {"activation_checkpointing": True},
        {"train_sampling_strategy": "group_by_length"},
        {"label_smoothing_factor": 0.1},
        {"dataloader_drop_last": True},
        {"per_device_train_batch_size": 1, "per_device_eval_batch_size": 1},
        {"per_device_train_batch_size": 9, "eval_on_start": True},
        {"optim": "adafactor", "max_grad_norm": 0.0},
        {"batch_eval_metrics": False, "eval_accumulation_steps": 1},
    ],
    ids=lambda options: ", ".join(map(str, options)),
)
def test_training_arguments(tmp_path: Path, options: dict[str, Any]) -> None:
    assert_caching_changes_nothing(tmp_path, options=options)


@pytest.mark.parametrize("options", [WORKERS, {**WORKERS, "dataloader_persistent_workers": False}], ids=str)
def test_forked_workers(tmp_path: Path, options: dict[str, Any]) -> None:
    assert_caching_changes_nothing(tmp_path, options={**options, "max_steps": 8, "eval_steps": 4})


def test_spawned_workers(tmp_path: Path) -> None:
    """They import everything anew, so one is enough, in a run that only hits what another has stored."""
    steps = {"max_steps": 3, "eval_strategy": "no"}
    options = {"dataloader_num_workers": 1, "dataloader_multiprocessing_context": "spawn", **steps}
    section = {"enabled": True, "dir": str(tmp_path / "cache"), "build": "lazy"}
    plain = trained(tmp_path, {"enabled": False}, options=steps)
    cold, warm = (trained(tmp_path, section, options=each) for each in (steps, options))
    assert (cold.cache.stats.hits, cold.cache.stats.misses) == (0, 18)
    assert (warm.cache.stats.hits, warm.cache.stats.misses, warm.cache.stats.built) == (18, 0, 0)
    assert cold.losses == warm.losses
    assert cold.losses == pytest.approx(plain.losses, abs=1e-5)


def test_autocast(tmp_path: Path) -> None:
    cold, _ = assert_caching_changes_nothing(tmp_path, options={"bf16": True}, atol=1e-3)
    assert cold.cache._outputs.replay.precision == "torch.bfloat16"


def extra_columns(labels: str = "classes") -> Dataset:
    rows = sentences(labels=labels)
    return rows.add_column("text", ["a film"] * len(rows)).add_column("number", list(range(len(rows))))


@pytest.mark.parametrize("removes", [True, False])
def test_columns_that_the_model_does_not_read(tmp_path: Path, removes: bool) -> None:
    def collate(rows: Sequence[Mapping[str, Any]]) -> Any:
        assert all(("text" in row) != removes for row in rows)
        return padding()([{name: row[name] for name in ("input_ids", "attention_mask", "labels")} for row in rows])

    assert_caching_changes_nothing(
        tmp_path,
        train_dataset=extra_columns(),
        eval_dataset=extra_columns(),
        data_collator=padding() if removes else collate,
        options={"remove_unused_columns": removes},
    )


def pairs(number: int = 40) -> Dataset:
    tokenizer = tiny_tokenizer()
    texts = [" ".join(f"word{5 + (row * 7 + place) % 90}" for place in range(2 + row % 5)) for row in range(number)]
    encoded = tokenizer(texts, texts[::-1], return_token_type_ids=True)
    return Dataset.from_dict({**encoded, "labels": [row % 2 for row in range(number)]})


def test_sentence_pairs(tmp_path: Path) -> None:
    rows = pairs()
    assert {0, 1} == set(rows[0]["token_type_ids"])
    assert_caching_changes_nothing(tmp_path, train_dataset=rows, eval_dataset=rows)


def test_rows_that_differ_in_another_column_than_the_words_are_told_apart(tmp_path: Path) -> None:
    words = [words for words in sentences(10)["input_ids"] for _ in range(2)]
    columns = {"input_ids": words, "attention_mask": [[1] * len(row) for row in words]}
    types = {"token_type_ids": [[place % 2] * len(row) for place, row in enumerate(words)]}
    data = Dataset.from_dict({**columns, **types, "labels": [place % 2 for place in range(20)]})
    cold, _ = assert_caching_changes_nothing(tmp_path, train_dataset=data, eval_dataset=data)
    assert cold.cache.num_rows == 20


class TestLeftPadding:
    @staticmethod
    def keywords() -> dict[str, Any]:
        return {"build": lambda: tiny_gpt2(attn_pdrop=0.1, resid_pdrop=0.1, embd_pdrop=0.1), "labels": "words"}

    def test_rows_of_one_length_are_cached(self, tmp_path: Path) -> None:
        rows = [left_padded(row, 12) for row in sentences(labels="words")]
        assert_caching_changes_nothing(
            tmp_path,
            train_dataset=rows,
            eval_dataset=rows[:12],
            data_collator=default_data_collator,
            **self.keywords(),
        )

    def test_rows_of_other_lengths_in_each_batch_are_right_too(self, tmp_path: Path) -> None:
        def collate(rows: Sequence[Mapping[str, Any]]) -> Any:
            width = max(len(row["input_ids"]) for row in rows)
            return default_data_collator([left_padded(row, width) for row in rows])

        assert_caching_changes_nothing(tmp_path, data_collator=collate, **self.keywords())


def left_padded(row: Mapping[str, Any], width: int) -> dict[str, Any]:
    """A row with padding before its words."""
    fill = {"input_ids": 0, "attention_mask": 0, "labels": -100}
    return {name: [fill[name]] * (width - len(row[name])) + list(row[name]) for name in fill}


@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2], ids=["llama", "gpt2"])
def test_language_models(tmp_path: Path, build: Any) -> None:
    assert_caching_changes_nothing(tmp_path, build=build, labels="words", options={"gradient_accumulation_steps": 2})


def test_sequence_to_sequence_with_generation(tmp_path: Path) -> None:
    options = arguments(tmp_path, max_steps=10, eval_strategy="steps", eval_steps=5).to_dict()
    args = Seq2SeqTrainingArguments(**{**options, "predict_with_generate": True, "generation_max_length": 6})
    found: list[Any] = []

    def count(prediction: Any) -> dict[str, float]:
        found.append(prediction.predictions.tolist())
        return {"sum": float(prediction.predictions.sum())}

    def build() -> nn.Module:
        return tiny_t5(dropout_rate=0.1)

    assert_caching_changes_nothing(
        tmp_path,
        build=build,
        labels="words",
        trainer_class=FreezeSeq2SeqTrainer,
        freeze={"blocks": {"encoder": {"first": 3}}},
        data_collator=padding("words", model=build()),
        compute_metrics=count,
        args=args,
    )
    assert len(found) == 6
    assert found[0:2] == found[2:4] == found[4:6]


def test_labels_do_not_count(tmp_path: Path) -> None:
    """Rows with the same words and other labels have the same hidden states."""
    rows = sentences(8)
    twice = Dataset.from_dict({name: [*rows[name], *rows[name]] for name in rows.column_names})
    twice = twice.remove_columns("labels").add_column("labels", [0] * 8 + [1] * 8)
    cold, _ = assert_caching_changes_nothing(tmp_path, train_dataset=twice, eval_dataset=twice)
    assert cold.cache.num_rows == 8


def test_a_row_longer_than_any_before(tmp_path: Path) -> None:
    section = {"enabled": True, "dir": str(tmp_path / "cache")}
    trained(tmp_path, section)
    longer = {"train_dataset": sentences(longest=40, seed=5), "eval_dataset": sentences(14, longest=60, seed=6)}
    plain, cached = (trained(tmp_path, one, **longer) for one in ({"enabled": False}, section))
    assert cached.losses == pytest.approx(plain.losses, abs=1e-5)
    assert cached.evaluations == pytest.approx(plain.evaluations, abs=1e-5)


@pytest.mark.parametrize("build", ["lazy", "eager"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_storing_in_half_the_bytes(tmp_path: Path, build: str, dtype: str) -> None:
    tolerance = {"float16": 2e-3, "bfloat16": 2e-2}[dtype]
    cold, warm = assert_caching_changes_nothing(tmp_path, section={"dtype": dtype, "build": build}, atol=tolerance)
    assert cold.losses == warm.losses
    assert cold.losses != trained(tmp_path, {"enabled": False}).losses


def test_a_model_in_bfloat16(tmp_path: Path) -> None:
    cold, _ = assert_caching_changes_nothing(tmp_path, build=lambda: tiny_bert().to(torch.bfloat16), atol=2e-2)
    assert cold.cache._outputs.stored_dtype is torch.bfloat16


def test_a_lazy_build_computes_each_row_once(tmp_path: Path) -> None:
    cold, _ = assert_caching_changes_nothing(tmp_path, section={"build": "lazy"}, eval_dataset=None)
    assert cold.cache.stats.built == 0
    assert cold.cache.stats.misses == cold.cache.num_rows == len(sentences())


def test_frozen_blocks_do_not_run_in_a_run_that_only_hits(tmp_path: Path) -> None:
    calls: list[bool] = []

    def build() -> nn.Module:
        model = dropping_bert()
        model.get_submodule("bert.encoder.layer.0").register_forward_hook(lambda *_: calls.append(True))
        return model

    section = {"enabled": True, "dir": str(tmp_path / "cache")}
    trained(tmp_path, section, build=build)
    counts = []
    for steps in (3, 9):
        calls.clear()
        trained(tmp_path, section, build=build, options={"max_steps": steps, "eval_steps": 3})
        counts.append(len(calls))
    assert counts[0] == counts[1] > 0
