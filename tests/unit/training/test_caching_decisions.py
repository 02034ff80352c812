"""When the trainer caches: where it holds, and where it pays; what it says, once, where it does not."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import nn
from torch.utils.data import IterableDataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    DataCollatorForLanguageModeling,
    default_data_collator,
)

from hf_freeze.errors import CacheError
from tests.tiny import build, tiny_bert, tiny_gpt2, tiny_tokenizer
from tests.unit.training.cached import (
    FROZEN,
    Result,
    assert_agree,
    assert_caching_changes_nothing,
    padding,
    sentences,
    stored_files,
    trained,
    trainer_of,
)
from tests.unit.training.runs import arguments, logged
from tests.zoo import ZOO

ONE_PASS = "each row is needed once, and there is no padding to save: storing would take longer than it saves"
FETCHED_AGAIN = "each row is needed once, and fetching it once more would take longer than it saves"
CHANGES = "the same rows give other inputs each time they are fetched (augmentation, masking)"


def epochs(number: float, **options: Any) -> dict[str, Any]:
    return {"max_steps": -1, "num_train_epochs": number, **options}


def auto(folder: Path) -> dict[str, object]:
    return {"enabled": "auto", "dir": str(folder / "cache")}


def spoken(reason: str) -> str:
    """The sentence of a reason: options and classes keep their spelling."""
    return f"{reason[:1].upper() if reason.split()[0].isalpha() else reason[:1]}{reason[1:]}."


def required(reason: str) -> str:
    """The whole message of the error that says why a cache that is asked for cannot be used, as a pattern."""
    message = (
        f"activation_cache.enabled: the cache cannot be used here; got True. {spoken(reason)} Set "
        "activation_cache.enabled to auto or false, or change what stands in its way."
    )
    return f"^{re.escape(message)}$"


def assert_off(
    folder: Path,
    caplog: pytest.LogCaptureFixture,
    reason: str,
    *,
    section: Mapping[str, object] | None = None,
    **keywords: Any,
) -> Result:
    """Asserts that `auto` says the reason once, stores nothing and changes nothing, and that `true` refuses."""
    cache = {**auto(folder), **(section or {})}
    with caplog.at_level(logging.WARNING, logger="hf_freeze"):
        run = trained(folder, cache, **keywords)
    assert run.cache.reason == reason
    assert not run.cache.is_on
    said = [record.getMessage() for record in caplog.records if "activation_cache" in record.getMessage()]
    assert said == [f"activation_cache: off. {spoken(reason)}"]
    assert stored_files(folder) == []
    assert_agree(run, trained(folder, {"enabled": False}, **keywords))
    with pytest.raises(CacheError, match=required(reason)):
        trained(folder, {**cache, "enabled": True}, **keywords)
    return run


class Slow(torch.utils.data.Dataset[dict[str, Any]]):
    """Rows that take much longer to fetch than to compute."""

    def __init__(self, rows: Dataset) -> None:
        self.rows = rows.to_list()
        self.fetched: list[int] = []

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        time.sleep(0.1)
        self.fetched.append(index)
        return dict(self.rows[index])


class TestPaying:
    """Counted in seconds of the prefix and of fetching: as often as rows are needed, or once and stored."""

    @staticmethod
    def same_length() -> Dataset:
        rows = sentences(40)
        return Dataset.from_dict(
            {"input_ids": [[7 + i, 8, 9 + i] for i in range(40)], "attention_mask": [[1] * 3] * 40}
            | {"labels": rows["labels"]}
        )

    def test_one_epoch_without_padding_is_off(self, tmp_path: Path) -> None:
        run = trained(tmp_path, auto(tmp_path), train_dataset=self.same_length(), eval_dataset=None, options=epochs(1))
        assert run.cache.reason == ONE_PASS
        assert run.cache.stats.built == run.cache.stats.misses == run.cache.stats.hits == 0
        assert stored_files(tmp_path) == []

    def test_one_epoch_with_padding_is_on(self, tmp_path: Path) -> None:
        run = trained(tmp_path, auto(tmp_path), eval_dataset=None, options=epochs(1))
        assert run.cache.is_on
        assert run.cache.stats.built == run.cache.stats.hits == 40

    def test_two_epochs_are_on(self, tmp_path: Path) -> None:
        run = trained(tmp_path, auto(tmp_path), train_dataset=self.same_length(), eval_dataset=None, options=epochs(2))
        assert run.cache.is_on
        assert (run.cache.stats.built, run.cache.stats.hits, run.cache.stats.misses) == (40, 80, 0)

    def test_one_epoch_is_on_where_rows_are_stored(self, tmp_path: Path) -> None:
        keywords = {"train_dataset": self.same_length(), "eval_dataset": None}
        trained(tmp_path, auto(tmp_path), options=epochs(2), **keywords)
        run = trained(tmp_path, auto(tmp_path), options=epochs(1), **keywords)
        assert run.cache.is_on
        assert (run.cache.stats.built, run.cache.stats.hits) == (0, 40)

    def test_one_epoch_of_rows_that_take_long_to_fetch_is_off(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Though there is padding to save: they would be fetched twice."""
        data = Slow(sentences(12))
        with caplog.at_level(logging.WARNING, logger="hf_freeze"):
            run = trained(tmp_path, auto(tmp_path), train_dataset=data, eval_dataset=None, options=epochs(1))
        assert caplog.messages == [f"activation_cache: off. {spoken(FETCHED_AGAIN)}"]
        assert (run.cache.is_on, run.cache.reason, stored_files(tmp_path)) == (False, FETCHED_AGAIN, [])
        assert len(data.fetched) == 24 + 12 + 12  # the probe, the survey, and training

    def test_rows_that_take_long_to_fetch_are_stored_when_training_meets_them(self, tmp_path: Path) -> None:
        data = Slow(sentences(12))
        run = trained(tmp_path, auto(tmp_path), train_dataset=data, eval_dataset=None, options=epochs(2))
        assert (run.cache.stats.built, run.cache.stats.misses, run.cache.stats.hits) == (0, 12, 12)
        assert len(data.fetched) == 24 + 12 + 2 * 12  # the probe, the survey, and training

    def test_steps_that_see_a_part_of_the_rows_are_off(self, tmp_path: Path) -> None:
        run = trained(tmp_path, auto(tmp_path), eval_dataset=None, options={"max_steps": 2})
        assert run.cache.reason == ONE_PASS
        assert run.cache.stats.built == run.cache.stats.misses == run.cache.stats.hits == 0

    @pytest.mark.parametrize(
        "options", [{"train_sampling_strategy": "group_by_length"}, {"num_train_epochs": 3, "max_steps": 2}]
    )
    def test_what_cannot_pay_is_off_without_a_call_of_the_model(self, tmp_path: Path, options: dict[str, Any]) -> None:
        calls: dict[str, int] = {}
        for name, section in (("plain", {"enabled": False}), ("auto", auto(tmp_path))):
            model = tiny_bert()
            calls[name] = 0

            def count(*_: object, name: str = name) -> None:
                calls[name] += 1

            model.register_forward_pre_hook(count)
            run = trained(
                tmp_path, section, build=lambda model=model: model, eval_dataset=None, options={**epochs(1), **options}
            )
        assert run.cache.reason == ONE_PASS
        assert calls["auto"] == calls["plain"] >= run.trainer.state.max_steps

    def test_evaluation_in_each_epoch_counts(self, tmp_path: Path) -> None:
        keywords = {"train_dataset": self.same_length(), "eval_dataset": self.same_length()}
        options = {"per_device_train_batch_size": 8, "eval_strategy": "steps", "eval_steps": 1}
        run = trained(tmp_path, auto(tmp_path), options=epochs(1, **options), **keywords)
        assert run.cache.is_on

    def test_steps_that_see_a_part_of_the_rows_do_not_build_the_rest_where_it_is_asked_for(
        self, tmp_path: Path
    ) -> None:
        section = {**auto(tmp_path), "enabled": True}
        run = trained(tmp_path, section, eval_dataset=None, options={"max_steps": 2})
        assert (run.cache.stats.built, run.cache.stats.misses) == (0, 12)

    def test_eager_building_where_it_is_asked_for(self, tmp_path: Path) -> None:
        section = {**auto(tmp_path), "enabled": True, "build": "eager"}
        run = trained(tmp_path, section, eval_dataset=None, options={"max_steps": 2})
        assert (run.cache.stats.built, run.cache.stats.hits, run.cache.stats.misses) == (40, 12, 0)


class TestNothingFrozen:
    REASON = (
        "no block is frozen from the input on: the frozen prefix ends at embeddings, where "
        "bert.embeddings.word_embeddings.weight trains"
    )

    def test_a_cache_that_is_asked_for_is_an_error_at_once(self, tmp_path: Path) -> None:
        with pytest.raises(CacheError, match=required(self.REASON)):
            trainer_of(tmp_path, {"enabled": True, "dir": str(tmp_path)}, freeze=None)

    def test_auto_says_nothing(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.INFO, logger="hf_freeze"):
            run = trained(tmp_path, auto(tmp_path), freeze=None)
        assert run.cache.reason == self.REASON
        assert [record for record in caplog.records if "activation_cache" in record.getMessage()] == []

    def test_keep_dropout(self, tmp_path: Path) -> None:
        reason = "freeze.keep_dropout is true: what the frozen blocks return is random"
        freeze = {**FROZEN, "keep_dropout": True}
        trainer = trainer_of(tmp_path, auto(tmp_path), freeze=freeze)
        assert trainer.activation_cache.reason == reason
        with pytest.raises(CacheError, match=r"^activation_cache\.enabled: .* got True\. .*keep_dropout is true: "):
            trainer_of(tmp_path, {**auto(tmp_path), "enabled": True}, freeze=freeze)


class Augmented(torch.utils.data.Dataset[dict[str, Any]]):
    """Rows in which each look replaces a word at random."""

    def __init__(self) -> None:
        self.rows = sentences().to_list()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        words = list(row["input_ids"])
        words[int(torch.randint(len(words), ()))] = int(torch.randint(5, 99, ()))
        return {**row, "input_ids": words}


class TestChangingRows:
    def test_augmentation(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        assert_off(tmp_path, caplog, CHANGES, train_dataset=Augmented())

    def test_augmentation_by_a_transform(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        def replace(rows: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
            changed = [[int(torch.randint(5, 99, ())), *words[1:]] for words in rows["input_ids"]]
            return {**rows, "input_ids": changed}

        assert_off(tmp_path, caplog, CHANGES, train_dataset=sentences().with_transform(replace))

    def test_masking_in_the_collator(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        sizes = {"num_hidden_layers": 4, "num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 64}
        assert_off(
            tmp_path,
            caplog,
            CHANGES,
            build=lambda: build(AutoModelForMaskedLM, "bert", vocab_size=99, pad_token_id=0, **sizes),
            labels="words",
            # Without a labels column of its own, whose padding the collator does not know.
            train_dataset=sentences().remove_columns("labels"),
            eval_dataset=None,
            data_collator=DataCollatorForLanguageModeling(tiny_tokenizer(), mlm_probability=0.3),
        )

    def test_a_language_model_whose_collator_masks_nothing_is_on(self, tmp_path: Path) -> None:
        assert_caching_changes_nothing(
            tmp_path,
            build=lambda: tiny_gpt2(resid_pdrop=0.1),
            train_dataset=sentences().remove_columns("labels"),
            eval_dataset=sentences(14, seed=1).remove_columns("labels"),
            data_collator=DataCollatorForLanguageModeling(tiny_tokenizer(), mlm=False),
        )


class Stream(IterableDataset[dict[str, Any]]):
    """Rows that come one after the other."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        yield from sentences().to_list()


class Once(IterableDataset[dict[str, Any]]):
    """Rows that come once, as those of a file that is read."""

    def __init__(self) -> None:
        self.rows = iter(sentences().to_list())

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self

    def __next__(self) -> dict[str, Any]:
        return dict(next(self.rows))


class Wrapped(Once):
    """The same behind an iterator that is new each time."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        yield from self.rows


class TestIterables:
    def test_streams_of_datasets_are_stored_on_first_sight(self, tmp_path: Path) -> None:
        cold, _ = assert_caching_changes_nothing(
            tmp_path,
            train_dataset=sentences().to_iterable_dataset(),
            eval_dataset=None,
            options={"max_steps": 14},
        )
        assert cold.cache.stats.built == 0
        assert cold.cache.stats.misses == 40
        assert cold.cache.stats.hits > 0

    def test_other_streams_are_not_read_unless_that_is_asked_for(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        stream = Stream()
        with caplog.at_level(logging.WARNING, logger="hf_freeze"):
            run = trained(tmp_path, auto(tmp_path), train_dataset=stream)
        assert run.cache.reason == (
            "looking at rows of a Stream, to see whether they stay the same, might use them up; with enabled: true "
            "they are looked at, and those of a datasets.IterableDataset or a dataset with a length always"
        )
        assert caplog.messages == [f"activation_cache: off. {spoken(run.cache.reason)}"]
        assert stored_files(tmp_path) == []

    def test_other_streams_that_start_anew_are_stored_on_first_sight_where_that_is_asked_for(
        self, tmp_path: Path
    ) -> None:
        options = {"max_steps": 14}
        cold, _ = assert_caching_changes_nothing(tmp_path, train_dataset=Stream(), eval_dataset=None, options=options)
        assert (cold.cache.stats.built, cold.cache.stats.misses) == (0, 40)

    def test_streams_that_come_once_are_refused_before_a_row_is_read(self, tmp_path: Path) -> None:
        stream = Once()
        reason = (
            "the rows of a Once come once, and it cannot be seen whether they stay the same; an __iter__ that starts "
            "anew each time, a datasets.IterableDataset or a dataset with a length shows it"
        )
        with pytest.raises(CacheError, match=required(reason)):
            trained(tmp_path, {**auto(tmp_path), "enabled": True}, train_dataset=stream)
        assert len(list(stream)) == 40

    def test_streams_that_are_used_up_by_looking_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(CacheError, match=required(CHANGES)):
            trained(tmp_path, {**auto(tmp_path), "enabled": True}, train_dataset=Wrapped())


def padded_left(rows: Sequence[Mapping[str, Any]], *, width: int | None = None) -> Any:
    """Pads rows in front, to the longest or to a width."""
    width = width or max(len(row["input_ids"]) for row in rows)
    fill = {"input_ids": 0, "attention_mask": 0, "labels": -100}
    return default_data_collator([{n: [fill[n]] * (width - len(row[n])) + list(row[n]) for n in fill} for row in rows])


def test_padding_on_the_left_to_the_longest_is_off(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A row is another in each batch: it would never be found again."""
    with caplog.at_level(logging.WARNING, logger="hf_freeze"):
        run = trained(tmp_path, auto(tmp_path), build=tiny_gpt2, labels="words", data_collator=padded_left)
    assert not run.cache.is_on
    assert run.cache.reason == (
        "hidden states cannot be cut to the real tokens of a row, since padding comes first, and batches are padded to "
        "different lengths; rows padded to one length can be cached"
    )
    assert [r.getMessage() for r in caplog.records] == [f"activation_cache: off. {spoken(run.cache.reason)}"]
    assert stored_files(tmp_path) == []


def test_padding_on_the_left_to_one_length_is_on(tmp_path: Path) -> None:
    """Though the longest row fills it."""
    collate = partial(padded_left, width=max(map(len, sentences()["input_ids"])))
    section = {**auto(tmp_path), "build": "eager"}
    run = trained(tmp_path, section, build=tiny_gpt2, labels="words", data_collator=collate)
    assert run.cache.is_on
    assert run.cache.stats.built == run.cache.num_rows
    assert run.cache.stats.misses == 0


@pytest.mark.parametrize("asked", ["output_hidden_states", "output_attentions"])
def test_a_config_that_asks_for_what_blocks_return_is_off(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, asked: str
) -> None:
    def make() -> nn.Module:
        return tiny_bert(attn_implementation="eager", **{asked: True})

    assert_off(
        tmp_path,
        caplog,
        f"{asked} is true in the model's config: the frozen blocks have to run for it",
        build=make,
    )


def test_router_logits_are_off(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    architecture = ZOO["mixtral with router logits"]
    assert_off(
        tmp_path,
        caplog,
        "output_router_logits is true in the model's config: the frozen blocks have to run for it",
        build=lambda: build(AutoModelForCausalLM, "mixtral", **architecture.config),
        labels="words",
    )


class TestRoom:
    def test_rows_that_are_more_than_max_size_allows(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        reason = "the rows need about 0.1 MB, and activation_cache.max_size allows 0.0 MB"
        assert_off(tmp_path, caplog, reason, section={"max_size": 20_000, "build": "eager"})

    @pytest.mark.parametrize("build", ["auto", "eager", "lazy"])
    def test_rows_that_do_not_fit_are_an_error_before_any_is_stored_where_the_cache_is_asked_for(
        self, tmp_path: Path, build: str
    ) -> None:
        section = {**auto(tmp_path), "enabled": True, "build": build, "max_size": 40_000}
        message = (
            "activation_cache.enabled: the cache cannot be used here; got True. The rows need about 0.1 MB, and "
            "activation_cache.max_size allows 0.0 MB. Set activation_cache.enabled to auto or false, or change what "
            "stands in its way."
        )
        with pytest.raises(CacheError) as caught:
            trained(tmp_path, section)
        assert str(caught.value) == message
        assert stored_files(tmp_path) == []

    def test_rows_that_are_stored_until_max_size_is_reached(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        section = {**auto(tmp_path), "build": "lazy", "max_size": 40_000}
        with caplog.at_level(logging.WARNING, logger="hf_freeze"):
            run = trained(tmp_path, section)
        assert_agree(run, trained(tmp_path, {"enabled": False}))
        assert run.cache.is_on
        assert 0 < run.cache.num_rows < 40 < run.cache.stats.misses
        (folder,) = (file.parent for file in stored_files(tmp_path))
        assert caplog.messages == [
            (
                f"activation_cache: {folder} has reached what activation_cache.max_size leaves it, 40000 bytes. "
                "Training goes on without storing more rows."
            )
        ]


def test_false_adds_nothing_to_batches(tmp_path: Path) -> None:
    collator = padding()
    trainer = trainer_of(tmp_path, {"enabled": False}, data_collator=collator)
    assert trainer.data_collator is collator
    trainer.train()
    assert trainer.activation_cache.reason in {None, "activation_cache.enabled is false"}
    assert stored_files(tmp_path) == []


def test_true_at_evaluation_refuses_what_cannot_be_cached(tmp_path: Path) -> None:
    reason = "output_hidden_states is true in the model's config: the frozen blocks have to run for it"
    trainer = trainer_of(
        tmp_path, {**auto(tmp_path), "enabled": True}, build=lambda: tiny_bert(output_hidden_states=True)
    )
    with pytest.raises(CacheError, match=required(reason)):
        trainer.evaluate()


def test_compiled_models_are_off(tmp_path: Path) -> None:
    args = arguments(tmp_path)
    args.torch_compile = True  # Later than where transformers would import the compiler.
    reason = "training.torch_compile is true, and compiled code would run the frozen blocks all the same"
    trainer = trainer_of(tmp_path, {**auto(tmp_path), "enabled": True}, args=args)
    with pytest.raises(CacheError, match=required(reason)):
        trainer.evaluate()
    assert logged(trainer, "eval_loss") == []
