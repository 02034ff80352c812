"""The keys of rows: the same for the same content, whatever is beside or behind it, and others for all else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_freeze import freeze_model
from hf_freeze.activation_cache.collator import keyed_inputs
from hf_freeze.activation_cache.keys import KEY_SIZE, batch_size, decoder_inputs, model_name, row_keys, row_lengths
from tests.tiny import tiny_bart, tiny_bert, tiny_gpt2, tiny_t5
from tests.unit.activation_cache.examples import collate, rows_of

TOKENS = st.lists(st.integers(1, 9), min_size=1, max_size=6)


def content_keys(inputs: dict[str, Any]) -> list[bytes]:
    return [bytes(key[:KEY_SIZE].tolist()) for key in row_keys(inputs)]


def whole_keys(inputs: dict[str, Any]) -> list[bytes]:
    return [bytes(key[KEY_SIZE:].tolist()) for key in row_keys(inputs)]


def text_of(*rows: list[int], width: int = 0, left: bool = False) -> dict[str, torch.Tensor]:
    made = [{"input_ids": row, "attention_mask": [1] * len(row), "labels": 0} for row in rows]
    return keyed_inputs(collate(made, width=width, left=left), ("labels",))


@given(rows=st.lists(TOKENS, min_size=2, max_size=5), more=st.integers(0, 5))
def test_the_key_of_the_content_does_not_depend_on_padding_behind_it_nor_on_other_rows(
    rows: list[list[int]], more: int
) -> None:
    together = content_keys(text_of(*rows, width=6 + more))
    assert together == [content_keys(text_of(row))[0] for row in rows]
    assert [together[i] == together[0] for i in range(len(rows))] == [row == rows[0] for row in rows]


@given(row=TOKENS, more=st.integers(1, 5))
def test_the_key_of_the_whole_row_depends_on_padding(row: list[int], more: int) -> None:
    alone, padded = text_of(row), text_of(row, width=len(row) + more)
    assert whole_keys(alone) != whole_keys(padded)
    assert whole_keys(alone) == content_keys(alone)
    assert whole_keys(padded) == whole_keys(text_of(row, [1] * (len(row) + more)))[:1]


def test_padding_on_the_left_counts() -> None:
    assert content_keys(text_of([5, 6], width=4, left=True)) != content_keys(text_of([5, 6], width=5, left=True))
    assert content_keys(text_of([5, 6], width=4, left=True)) != content_keys(text_of([5, 6]))
    padded = text_of([5, 6], width=4, left=True)
    assert content_keys(padded) == whole_keys(padded)
    assert row_lengths(padded) == [4]


def test_gaps_in_the_mask_count() -> None:
    ids = torch.tensor([[5, 6, 7, 8]])
    masks = [torch.tensor([mask]) for mask in ([1, 0, 1, 0], [1, 1, 1, 0], [1, 0, 0, 0], [1, 0, 1, 1], [0, 0, 0, 0])]
    assert [row_lengths({"input_ids": ids, "attention_mask": mask}) for mask in masks] == [[4], [3], [1], [4], [4]]
    keys = {content_keys({"input_ids": ids, "attention_mask": mask})[0] for mask in masks}
    assert len(keys) == len(masks)


def test_what_lies_under_the_padding_does_not_count() -> None:
    padded = text_of([5, 6], width=4)
    other = {**padded, "input_ids": padded["input_ids"].clone()}
    other["input_ids"][0, 2:] = 9
    assert content_keys(padded) == content_keys(other)
    assert whole_keys(padded) != whole_keys(other)


def test_token_types_count() -> None:
    inputs = text_of([5, 6, 7])
    pairs = [{**inputs, "token_type_ids": torch.tensor([types])} for types in ([0, 0, 0], [0, 0, 1], [0, 1, 1])]
    assert len({content_keys(each)[0] for each in (inputs, *pairs)}) == 4


def test_token_types_are_cut_with_the_padding() -> None:
    rows = [{**row, "token_type_ids": [0, *[1] * (len(row["input_ids"]) - 1)]} for row in rows_of()]
    together = content_keys(keyed_inputs(collate(rows, width=20), ("labels",)))
    assert together == [content_keys(keyed_inputs(collate([row]), ("labels",)))[0] for row in rows]


def test_a_feature_of_the_whole_row_counts_as_a_whole_where_the_batch_happens_to_be_as_wide() -> None:
    tokens = text_of([5, 6, 7], [5, 6, 7], width=5)
    features = [[0, 0, 0, 0, 0], [0, 0, 0, 0, 1], [0, 0, 0, 1, 0], [0, 0, 0, 1, 1], [1, 0, 0, 0, 0]]
    keys = {content_keys({**tokens, "genres": torch.tensor([row, features[0]])})[0] for row in features}
    assert len(keys) == len(features)
    # However the numbers beside each other are cut, none of them may pass for that of another feature.
    first = {"genres": torch.tensor([[1, 2, 3, 4, 5]] * 2), "places": torch.tensor([[6, 7, 8, 0, 0]] * 2)}
    second = {"genres": torch.tensor([[1, 2, 3, 0, 0]] * 2), "places": torch.tensor([[4, 5, 6, 7, 8]] * 2)}
    assert content_keys({**tokens, **first}) != content_keys({**tokens, **second})


def test_other_features_of_tokens_are_cut_with_the_padding_where_that_is_zero() -> None:
    def boxes(width: int) -> torch.Tensor:
        return torch.tensor([[[1, 2, 3, 4]] * 2 + [[0] * 4] * (width - 2)])

    keys = [content_keys({**text_of([5, 6], width=width), "bbox": boxes(width)})[0] for width in (2, 3, 5)]
    assert len(set(keys)) == 1


class Elsewhere(torch.Tensor):
    """A tensor on another device, as far as NumPy can tell."""

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError("can't convert a device tensor to numpy. Use Tensor.cpu() first.")

    def cpu(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self.as_subclass(torch.Tensor)


def test_tensors_on_any_device_have_the_same_keys() -> None:
    inputs = {**text_of([5, 6], [7, 8, 9]), "bbox": torch.zeros(2, 3, 4)}
    elsewhere = {name: value.as_subclass(Elsewhere) for name, value in inputs.items()}
    assert torch.equal(row_keys(elsewhere), row_keys(inputs))


def test_labels_do_not_count() -> None:
    rows = rows_of(4)
    changed = [{**row, "labels": 1 - row["labels"]} for row in rows]
    first, second = (row_keys(keyed_inputs(collate(each), ("labels",))) for each in (rows, changed))
    assert torch.equal(first, second)
    assert not torch.equal(row_keys(collate(rows)), row_keys(collate(changed)))


def test_decoder_inputs_of_encoder_decoders_do_not_count() -> None:
    for model in (tiny_t5(), freeze_model(tiny_bart(), {"blocks": {"encoder": {"first": 2}}})):
        unkeyed = decoder_inputs(model)
        assert {"decoder_input_ids", "decoder_attention_mask"} <= set(unkeyed)
        assert all(name.startswith("decoder_") for name in unkeyed)
    assert decoder_inputs(tiny_bert()) == decoder_inputs(tiny_gpt2()) == decoder_inputs(torch.nn.Linear(2, 2)) == ()


def test_a_model_is_named_by_where_it_was_loaded_or_by_its_class() -> None:
    model = tiny_bert()
    assert model_name(model) == "BertForSequenceClassification"
    model.config.name_or_path = "somewhere/bert"
    assert model_name(freeze_model(model, {"blocks": {"first": 2}})) == "somewhere/bert"
    assert model_name(torch.nn.Linear(2, 2)) == "Linear"


def test_inputs_that_are_no_tensors_count_for_every_row() -> None:
    inputs = text_of([5, 6], [7, 8])
    keys = [content_keys({**inputs, "interpolate": value}) for value in (None, True, False, 1, "1", (1, 2), [1, 2])]
    assert len({key for pair in keys for key in pair}) == 2 * len(keys)
    assert content_keys({**inputs, "interpolate": True}) == content_keys({**inputs, "interpolate": True})


def test_tensors_that_are_not_per_row_count_for_every_row() -> None:
    inputs = text_of([5, 6], [7, 8])
    shared = [torch.tensor(0.5), torch.tensor(0.25), torch.tensor([1, 2, 3]), torch.tensor([1.0, 2.0, 3.0])]
    keys = [content_keys({**inputs, "scale": value}) for value in shared]
    assert len({key for pair in keys for key in pair}) == 8


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float32])
def test_values_of_every_dtype_count(dtype: torch.dtype) -> None:
    pixels = torch.tensor([[0, 1, 0], [0, 1, 0], [1, 1, 0]]).to(dtype)
    first, second, third = content_keys({"pixel_values": pixels})
    assert first == second != third


def test_equal_bytes_of_other_shapes_dtypes_and_names_have_other_keys() -> None:
    eight = torch.arange(8, dtype=torch.int32)
    alike = [
        {"pixel_values": eight.view(1, 8)},
        {"pixel_values": eight.view(1, 2, 4)},
        {"pixel_values": eight.view(1, 4, 2)},
        {"pixel_values": eight.view(1, 8, 1)},
        {"pixel_values": eight.view(torch.float32).view(1, 8)},
        {"input_values": eight.view(1, 8)},
        {"pixel_values": eight[:4].view(1, 4), "pixel_zvalues": eight[4:].view(1, 4)},
        {"pixel_values": eight[:6].view(1, 6), "pixel_zvalues": eight[6:].view(1, 2)},
    ]
    assert len({content_keys(inputs)[0] for inputs in alike}) == len(alike)


def test_the_order_of_the_inputs_does_not_count_nor_does_how_they_lie_in_memory() -> None:
    inputs = text_of([5, 6], [7, 8])
    assert torch.equal(row_keys(inputs), row_keys(dict(reversed(inputs.items()))))
    turned = inputs["input_ids"].T.contiguous().T
    assert not turned.is_contiguous()
    assert torch.equal(row_keys(inputs), row_keys({**inputs, "input_ids": turned}))


def test_without_a_padding_mask_both_keys_are_of_the_whole_row() -> None:
    pixels = torch.arange(24.0).view(2, 3, 2, 2)
    for inputs in ({"pixel_values": pixels}, {"pixel_values": pixels, "attention_mask": torch.ones(2, 1, 3, 3)}):
        assert row_lengths(inputs) is None
        assert content_keys(inputs) == whole_keys(inputs)
        assert len(set(content_keys(inputs))) == batch_size(inputs) == 2
