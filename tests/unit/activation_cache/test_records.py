"""A record gives back what went into it, or says that it is damaged."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_freeze.activation_cache.records import decode, encode, to_tensor
from hf_freeze.errors import CacheError

KEY = b"k" * 16
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@given(shape=st.lists(st.integers(0, 5), max_size=4), dtype=st.sampled_from(DTYPES))
def test_rows_of_any_shape_come_back(shape: list[int], dtype: torch.dtype) -> None:
    tensor = torch.randn(shape).to(dtype)
    record = decode(KEY, memoryview(encode(KEY, tensor)))
    assert record is not None
    row = to_tensor(record)
    assert (row.dtype, row.shape) == (dtype, tensor.shape)
    assert torch.equal(row, tensor)


def test_a_row_need_not_lie_in_order_in_memory_nor_be_without_gradient() -> None:
    tensor = torch.randn(4, 3, requires_grad=True).T
    record = decode(KEY, memoryview(encode(KEY, tensor)))
    assert record is not None
    assert torch.equal(to_tensor(record), tensor)


def test_not_a_number_comes_back_to_the_bit() -> None:
    tensor = torch.tensor([float("nan"), float("inf"), -0.0])
    record = decode(KEY, memoryview(encode(KEY, tensor)))
    assert record is not None
    assert torch.equal(to_tensor(record).view(torch.int32), tensor.view(torch.int32))


@given(bit=st.integers(0, 8 * 58 - 1))
def test_any_flipped_bit_is_damage(bit: int) -> None:
    record = bytearray(encode(KEY, torch.arange(8.0).reshape(2, 4)))
    assert len(record) == 58
    record[bit // 8] ^= 1 << bit % 8
    assert decode(KEY, memoryview(record)) is None


@given(size=st.integers(0, 57))
def test_a_beginning_is_damage(size: int) -> None:
    assert decode(KEY, memoryview(encode(KEY, torch.arange(8.0).reshape(2, 4)))[:size]) is None


def test_the_record_of_another_key_is_damage() -> None:
    assert decode(b"o" * 16, memoryview(encode(KEY, torch.zeros(2)))) is None


def test_a_dtype_that_is_no_float_is_refused() -> None:
    message = (
        "activation_cache: cannot store a tensor of dtype 'int64'; rows have one of bfloat16, float16, float32, "
        "float64. Set activation_cache.dtype to one of these."
    )
    with pytest.raises(CacheError, match=f"^{re.escape(message)}$"):
        encode(KEY, torch.zeros(2, dtype=torch.int64))
