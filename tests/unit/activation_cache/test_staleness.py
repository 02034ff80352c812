"""A changed weight, input, dtype, depth, source or version misses; a row that is the same hits, whatever is beside."""

from __future__ import annotations

import copy
import importlib.util
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel
from transformers.models.bert import modeling_bert

from hf_freeze import ActivationCache, CacheError, freeze_model
from hf_freeze.activation_cache.collator import keyed_inputs
from hf_freeze.activation_cache.housekeeping import list_stores
from tests.tiny import VOCAB_SIZE, tiny_bert
from tests.unit.activation_cache.examples import (
    cache_of,
    collate,
    evaluate,
    frozen_bert,
    hits_and_misses,
    loader_of,
    rows_of,
)
from tests.zoo import ZOO

ROWS = rows_of()
ALL_HIT, ALL_MISS = (12, 0), (0, 12)


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    """A folder with the twelve rows of the seed's model, at depth 2."""
    assert hits_and_misses(cache_of(frozen_bert(), tmp_path), loader_of(ROWS)) == ALL_MISS
    return tmp_path


def of_a_new_run(folder: Path, model: PreTrainedModel | None = None, **section: Any) -> tuple[int, int]:
    cache = cache_of(frozen_bert() if model is None else model, folder, **section)
    found = hits_and_misses(cache, loader_of(ROWS))
    assert cache.is_on, cache.reason
    return found


@pytest.mark.parametrize(
    "batches",
    [
        loader_of(ROWS),
        loader_of(ROWS[::-1]),
        loader_of(ROWS, batch_size=5),
        loader_of(ROWS, batch_size=1),
        loader_of(ROWS, collate_fn=partial(collate, width=30)),
        [collate(ROWS)],
    ],
    ids=["the same", "reordered", "other batches", "one by one", "wider", "all at once"],
)
def test_unchanged_rows_hit_in_a_new_run(filled: Path, batches: Any) -> None:
    expected = evaluate(frozen_bert(), batches)
    cache = cache_of(frozen_bert(), filled)
    assert hits_and_misses(cache, batches) == ALL_HIT
    served = evaluate(cache.model, batches, cache.serve)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(served, expected, strict=True))
    cache.close()


def test_rows_hit_in_another_split_and_only_others_miss(filled: Path) -> None:
    split = [*rows_of(5, seed=1), *ROWS[3:7], *rows_of(2, seed=2)]
    assert hits_and_misses(cache_of(frozen_bert(), filled), loader_of(split)) == (4, 7)


def test_saving_the_model_changes_nothing(filled: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    model = frozen_bert()
    model.save_pretrained(tmp_path_factory.mktemp("saved"))  # notes the dtype in the config
    assert of_a_new_run(filled, model) == ALL_HIT


def test_other_labels_heads_and_suffixes_hit(filled: Path) -> None:
    cache = cache_of(frozen_bert(num_labels=2, id2label={0: "bad", 1: "good"}, problem_type=None), filled)
    with torch.no_grad():
        for name, parameter in cache.model.named_parameters():
            if "layer.3" in name or "classifier" in name:
                parameter.add_(1.0)
    assert hits_and_misses(cache, loader_of([{**row, "labels": 0} for row in ROWS])) == ALL_HIT


def test_adapters_behind_the_prefix_hit(filled: Path) -> None:
    adapters = [{"peft_type": "LORA", "r": 2, "target_modules": ["query"], "blocks": {"last": 2}}]
    model = freeze_model(tiny_bert(), {"blocks": {"first": 2}}, adapters)
    assert hits_and_misses(cache_of(model, filled), loader_of(ROWS)) == ALL_HIT


def word(model: PreTrainedModel) -> nn.Parameter:
    return model.bert.embeddings.word_embeddings.weight


def in_place(model: PreTrainedModel) -> None:
    with torch.no_grad():
        word(model)[7, 3] += 0.5


def in_the_last_frozen_block(model: PreTrainedModel) -> None:
    with torch.no_grad():
        model.bert.encoder.layer[1].output.dense.bias[0] -= 0.5


def by_load_state_dict(model: PreTrainedModel) -> None:
    state = {name: value.clone() for name, value in model.state_dict().items()}
    state["bert.encoder.layer.0.attention.self.query.weight"][0, 0] += 0.5
    model.load_state_dict(state)


def by_other_memory(model: PreTrainedModel) -> None:
    word(model).data = word(model).detach() + 0.5


def through_data(model: PreTrainedModel) -> None:
    word(model).data[7, 3] += 0.5  # which PyTorch does not note


def to_double(model: PreTrainedModel) -> None:
    model.double()


def by_assigned_state(model: PreTrainedModel) -> None:
    state = {name: value.clone() for name, value in model.state_dict().items()}
    state["bert.encoder.layer.0.attention.self.query.weight"][0, 0] += 0.5
    model.load_state_dict(state, assign=True)


def by_another_parameter(model: PreTrainedModel) -> None:
    changed = word(model).detach() + 0.5
    model.bert.embeddings.word_embeddings.weight = nn.Parameter(changed, requires_grad=False)


def by_other_input_embeddings(model: PreTrainedModel) -> None:
    changed = word(model).detach() + 0.5
    model.set_input_embeddings(nn.Embedding.from_pretrained(changed, padding_idx=0))


def by_another_block(model: PreTrainedModel) -> None:
    model.bert.encoder.layer[1] = copy.deepcopy(model.bert.encoder.layer[1])
    in_the_last_frozen_block(model)


CHANGES: list[Callable[[PreTrainedModel], None]] = [
    in_place,
    in_the_last_frozen_block,
    by_load_state_dict,
    by_other_memory,
    through_data,
    to_double,
    by_assigned_state,
    by_another_parameter,
    by_other_input_embeddings,
    by_another_block,
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_weight_misses_in_the_same_run_without_a_word(
    filled: Path, change: Callable[[PreTrainedModel], None]
) -> None:
    cache = cache_of(frozen_bert(), filled)
    assert hits_and_misses(cache, loader_of(ROWS)) == ALL_HIT
    change(cache.model)
    assert hits_and_misses(cache, loader_of(ROWS)) == ALL_MISS
    expected = evaluate(cache.model, loader_of(ROWS))
    served = evaluate(cache.model, loader_of(ROWS), cache.serve)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(served, expected, strict=True))
    cache.close()


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_weight_misses_in_a_new_run(filled: Path, change: Callable[[PreTrainedModel], None]) -> None:
    model = frozen_bert()
    change(model)
    assert of_a_new_run(filled, model) == ALL_MISS
    assert of_a_new_run(filled) == ALL_HIT


class RowsThatWrite:
    """Writes through `.data` of a frozen weight when one of its rows is fetched for the third time."""

    def __init__(self, model: PreTrainedModel, number: int) -> None:
        self.model, self.number, self.fetched = model, number, 0

    def __len__(self) -> int:
        return len(ROWS)

    def __getitem__(self, number: int) -> Any:
        self.fetched += number == self.number
        if number == self.number and self.fetched == 4:
            through_data(self.model)
        return ROWS[number]


def test_what_is_computed_after_a_write_through_data_is_not_stored(tmp_path: Path) -> None:
    model = frozen_bert()
    cache = cache_of(model, tmp_path)
    loader = loader_of(RowsThatWrite(model, 5))
    cache.build(loader, show_progress=False)
    cache.close()
    assert cache.stats.built == 0
    assert of_a_new_run(tmp_path) == ALL_MISS


def test_weights_of_many_values_are_read_when_asked_to_be(tmp_path: Path) -> None:
    model = freeze_model(tiny_bert(hidden_size=256, intermediate_size=1024), {"blocks": {"first": 2}})
    cache = cache_of(model, tmp_path)
    assert hits_and_misses(cache, loader_of(ROWS)) == ALL_MISS
    cache.check_weights()
    assert hits_and_misses(cache, loader_of(ROWS)) == ALL_HIT
    word(model).data.mul_(2)
    cache.check_weights()
    assert not cache.is_on
    assert not cache.is_decided
    assert hits_and_misses(cache, loader_of(ROWS)) == ALL_MISS


def test_weights_of_many_values_are_read_every_few_batches(tmp_path: Path) -> None:
    model = freeze_model(tiny_bert(hidden_size=256, intermediate_size=1024), {"blocks": {"first": 2}})
    num_bytes = sum(parameter.nbytes for parameter in model.parameters() if not parameter.requires_grad)
    assert 6 << 20 < num_bytes < 12 << 20
    cache = cache_of(model, tmp_path)
    assert hits_and_misses(cache, loader_of(ROWS)) == ALL_MISS
    word(model).data.mul_(2)
    found = [hits_and_misses(cache, [collate(ROWS)]) for _ in range(12)]
    assert ALL_MISS in found
    assert found[-1] == ALL_HIT
    torch.testing.assert_close(evaluate(model, [collate(ROWS)], cache.serve), evaluate(model, [collate(ROWS)]))
    cache.close()


def test_weights_that_come_back_hit_again(filled: Path) -> None:
    cache = cache_of(frozen_bert(), filled)
    state = {name: value.clone() for name, value in cache.model.state_dict().items()}
    in_place(cache.model)
    assert hits_and_misses(cache, loader_of(ROWS)) == ALL_MISS
    cache.model.load_state_dict(state)
    assert hits_and_misses(cache, loader_of(ROWS)) == ALL_HIT


def test_a_changed_buffer_misses_after_refresh(filled: Path) -> None:
    model = frozen_bert()
    model.bert.embeddings.register_buffer("scale", torch.ones(1), persistent=False)
    assert of_a_new_run(filled, model) == ALL_MISS
    assert of_a_new_run(filled, model) == ALL_HIT
    model.bert.embeddings.scale.mul_(2)
    assert of_a_new_run(filled, model) == ALL_MISS


@pytest.mark.parametrize("name", ["input_ids", "attention_mask", "token_type_ids"])
def test_another_output_of_the_tokenizer_misses(filled: Path, name: str) -> None:
    changed = [{**row, "token_type_ids": [0] * len(row["input_ids"])} for row in ROWS]
    cache = cache_of(frozen_bert(), filled)
    hits_and_misses(cache, loader_of(changed))
    assert hits_and_misses(cache, loader_of(changed)) == ALL_HIT
    row = changed[4]
    changed[4] = {**row, name: [row[name][0], {"input_ids": 98}.get(name, 1 - row[name][1]), *row[name][2:]]}
    assert hits_and_misses(cache, loader_of(changed)) == (11, 1)


class BertWithGenres(BertForSequenceClassification):
    """Scales its embeddings by five numbers of each row, which nothing cuts."""

    def forward(self, input_ids: Any, attention_mask: Any, genres: Any, labels: Any = None) -> Any:
        scale = 1 + genres @ torch.arange(1.0, 6.0)
        embeddings = self.bert.embeddings.word_embeddings(input_ids) * scale[:, None, None]
        return super().forward(inputs_embeds=embeddings, attention_mask=attention_mask, labels=labels)


def test_a_feature_of_the_row_that_is_as_wide_as_the_batch_misses_when_it_changes(tmp_path: Path) -> None:
    model = freeze_model(BertWithGenres(tiny_bert().config), {"blocks": {"first": 2}})
    tokens = {"input_ids": torch.full((3, 5), 7), "attention_mask": torch.tensor([[1, 1, 1, 0, 0]] * 2 + [[1] * 5])}
    first = {**tokens, "genres": torch.tensor([[0.0, 0, 0, 0, 0], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]])}
    second = {**tokens, "genres": torch.tensor([[0.0, 0, 0, 1, 0], [0, 0, 0, 1, 1], [0, 0, 0, 0, 1]])}
    cache = cache_of(model, tmp_path, enabled=True)
    others = keyed_inputs(collate(rows_of(3), width=13), ("labels",))
    assert cache.prepare({**others, "genres": torch.ones(3, 5)})
    assert cache._outputs is not None
    assert cache._outputs.trims
    for batch in (first, second):
        assert hits_and_misses(cache, [batch]) == (0, 3)
        assert hits_and_misses(cache, [batch]) == (3, 0)
        torch.testing.assert_close(evaluate(model, [batch], cache.serve), evaluate(model, [batch]))
    cache.close()


def test_another_stored_dtype_misses(filled: Path) -> None:
    assert of_a_new_run(filled, dtype="float16") == ALL_MISS
    assert of_a_new_run(filled, dtype="bfloat16") == ALL_MISS
    assert of_a_new_run(filled, dtype="float32") == of_a_new_run(filled, dtype="float16") == ALL_HIT
    assert {info.dtype for info in list_stores(filled)} == {"float32", "float16", "bfloat16"}


def test_another_dtype_of_the_model_misses(filled: Path) -> None:
    assert of_a_new_run(filled, frozen_bert().to(torch.bfloat16)) == ALL_MISS
    assert of_a_new_run(filled, frozen_bert().to(torch.bfloat16)) == ALL_HIT


def test_autocast_misses_and_so_does_its_end(filled: Path) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert of_a_new_run(filled) == ALL_MISS
        assert of_a_new_run(filled) == ALL_HIT
    with torch.autocast("cpu", torch.float16):
        assert of_a_new_run(filled) == ALL_MISS
    assert of_a_new_run(filled) == ALL_HIT


@pytest.mark.parametrize("is_first", [True, False])
def test_autocast_that_is_entered_or_left_in_the_same_run_misses(tmp_path: Path, is_first: bool) -> None:
    cache = cache_of(frozen_bert(), tmp_path)
    for is_on in (is_first, not is_first):
        with torch.autocast("cpu", torch.bfloat16, enabled=is_on):
            assert hits_and_misses(cache, loader_of(ROWS)) == ALL_MISS
    assert len(list_stores(tmp_path)) == 2


def test_autocast_around_the_build_counts(tmp_path: Path) -> None:
    cache = cache_of(frozen_bert(), tmp_path)
    assert cache.prepare(collate(ROWS))
    with torch.autocast("cpu", torch.bfloat16):
        cache.build(loader_of(ROWS), show_progress=False)
        assert hits_and_misses(cache, loader_of(ROWS)) == ALL_HIT
    assert hits_and_misses(cache, loader_of(ROWS)) == ALL_MISS


def test_autocast_that_is_entered_behind_serve_is_refused(tmp_path: Path) -> None:
    cache = cache_of(frozen_bert(), tmp_path)
    message = (
        "activation_cache: the model was called under another autocast than its batch was served under; got "
        "torch.bfloat16 in place of none. Enter torch.autocast before serve()."
    )
    with (
        pytest.raises(CacheError, match=f"^{re.escape(message)}$"),
        cache.serve(collate(ROWS)) as inputs,
        torch.autocast("cpu", torch.bfloat16),
    ):
        cache.model(**inputs)
    cache.close()


def test_another_depth_misses_where_the_shallower_prefix_is_not_stored(filled: Path) -> None:
    assert of_a_new_run(filled, frozen_bert(1)) == ALL_MISS
    assert of_a_new_run(filled, frozen_bert(3)) == ALL_MISS
    assert sorted(info.depth for info in list_stores(filled)) == [1, 2, 3]


def test_another_attention_implementation_misses(tmp_path: Path) -> None:
    assert of_a_new_run(tmp_path, frozen_bert(attn_implementation="sdpa")) == ALL_MISS
    assert of_a_new_run(tmp_path, frozen_bert(attn_implementation="eager")) == ALL_MISS
    assert of_a_new_run(tmp_path, frozen_bert(attn_implementation="sdpa")) == ALL_HIT


def test_another_attention_implementation_of_the_same_model_misses(filled: Path) -> None:
    cache = cache_of(frozen_bert(), filled)
    assert hits_and_misses(cache, loader_of(ROWS)) == ALL_HIT
    cache.model.set_attn_implementation("eager")
    assert hits_and_misses(cache, loader_of(ROWS)) == ALL_MISS


def test_another_attention_implementation_of_a_model_inside_misses(tmp_path: Path) -> None:
    architecture = ZOO["siglip classifier"]
    batches = [architecture.batch()]

    def siglip() -> PreTrainedModel:
        return freeze_model(architecture.build(), {"blocks": {"first": 2}})

    cache = cache_of(siglip(), tmp_path)
    assert hits_and_misses(cache, batches) == (0, 4)
    cache.model.set_attn_implementation({"vision_config": "eager"})
    assert hits_and_misses(cache, batches) == (0, 4)
    for implementation in ("sdpa", "eager"):
        model = siglip()
        model.set_attn_implementation({"vision_config": implementation})
        assert hits_and_misses(cache_of(model, tmp_path), batches) == (4, 0)
    assert len(list_stores(tmp_path)) == 2


@pytest.fixture
def kept_precision() -> Iterator[None]:
    """Gives the precision of products its state back, whichever way a test sets it."""
    yield
    torch.set_float32_matmul_precision("highest")
    for place in (torch.backends, torch.backends.cuda.matmul, torch.backends.mkldnn.matmul):
        place.fp32_precision = "none"


@pytest.mark.usefixtures("kept_precision")
@pytest.mark.parametrize(
    ("module", "name", "value"),
    [
        (torch.backends, "fp32_precision", "tf32"),  # as TrainingArguments(tf32=True) sets it
        (torch.backends.cuda.matmul, "fp32_precision", "tf32"),
        (torch.backends.cuda.matmul, "allow_tf32", True),
        (torch.backends.mkldnn.matmul, "fp32_precision", "bf16"),
    ],
    ids=["all", "one of CUDA", "the old way", "one of the CPU"],
)
def test_another_precision_of_products_misses(filled: Path, module: Any, name: str, value: object) -> None:
    cache = cache_of(frozen_bert(), filled)
    assert hits_and_misses(cache, loader_of(ROWS)) == ALL_HIT
    setattr(module, name, value)
    assert hits_and_misses(cache, loader_of(ROWS)) == ALL_MISS
    assert of_a_new_run(filled) == ALL_HIT
    assert len(list_stores(filled)) == 2


@pytest.mark.parametrize("library", ["torch", "transformers"])
def test_another_version_misses(filled: Path, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Named as the code has it: importing PEFT puts another module object in place of `transformers`.
    monkeypatch.setattr(f"hf_freeze.activation_cache.keys.{library}.__version__", "99.0")
    assert of_a_new_run(filled) == ALL_MISS
    monkeypatch.undo()
    assert of_a_new_run(filled) == ALL_HIT


def test_another_config_misses(filled: Path) -> None:
    assert of_a_new_run(filled, frozen_bert(layer_norm_eps=1e-5)) == ALL_MISS


def bert_of(source: Path, monkeypatch: pytest.MonkeyPatch) -> PreTrainedModel:
    """Builds the model of a copy of the modelling file, with the same weights whatever the file says."""
    name = "transformers.models.bert.modeling_copy"
    spec = importlib.util.spec_from_file_location(name, source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    config = BertConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: PreTrainedModel = module.BertForSequenceClassification(config)
    return freeze_model(model, {"blocks": {"first": 2}})


def test_an_edited_modelling_source_misses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    source = tmp_path / "modeling_copy.py"
    text = Path(modeling_bert.__file__).read_text(encoding="utf-8")
    edited = text.replace("embeddings = inputs_embeds + ", "embeddings = 2 * inputs_embeds + ")
    assert edited != text
    found = []
    for each in (text, text, edited, edited, text):
        source.write_text(each, encoding="utf-8")
        found.append(of_a_new_run(tmp_path / "cache", bert_of(source, monkeypatch)))
    assert found == [ALL_MISS, ALL_HIT, ALL_MISS, ALL_HIT, ALL_HIT]


OWN_MODEL = {
    "own/__init__.py": "",
    "own/numbers.py": "SCALE = 1.0",
    "own/base.py": """
from transformers.models.bert.modeling_bert import BertEmbeddings
from .numbers import SCALE

class Scaled(BertEmbeddings):
    def forward(self, *args, **kwargs):
        return SCALE * super().forward(*args, **kwargs) + 0
""",
    "own/model.py": """
from own.base import Scaled

class Embeddings(Scaled):
    pass
""",
    "own/unread.py": "",
}


@pytest.mark.parametrize(
    ("file", "before", "after", "found"),
    [
        ("own/model.py", "pass", "x = 1", ALL_MISS),
        ("own/base.py", "+ 0", "+ 1", ALL_MISS),
        ("own/numbers.py", "1.0", "3.0", ALL_MISS),
        ("own/unread.py", "", "x = 1", ALL_HIT),
    ],
)
def test_an_edited_source_of_a_base_class_or_of_what_it_imports_misses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, before: str, after: str, found: tuple[int, int]
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own").mkdir()

    def rows_of_a_new_run(sources: dict[str, str]) -> tuple[int, int]:
        for name, text in sources.items():
            (tmp_path / name).write_text(text, encoding="utf-8")
        for name in [name for name in sys.modules if name.partition(".")[0] == "own"]:
            monkeypatch.delitem(sys.modules, name)
        importlib.invalidate_caches()
        model = tiny_bert()
        embeddings = importlib.import_module("own.model").Embeddings(model.config)
        embeddings.load_state_dict(model.bert.embeddings.state_dict())
        model.bert.embeddings = embeddings
        return of_a_new_run(tmp_path / "cache", freeze_model(model, {"blocks": {"first": 2}}))

    edited = {**OWN_MODEL, file: OWN_MODEL[file].replace(before, after) or after}
    assert edited != OWN_MODEL
    assert [rows_of_a_new_run(each) for each in (OWN_MODEL, edited, OWN_MODEL)] == [ALL_MISS, found, ALL_HIT]


def test_the_real_model_hits_unless_one_number_of_its_prefix_changes(minilm_path: Path, tmp_path: Path) -> None:
    rows = rows_of(4)

    def cached() -> ActivationCache:
        model = transformers.AutoModelForSequenceClassification.from_pretrained(minilm_path)
        return cache_of(freeze_model(model, {"blocks": {"first": 5}}), tmp_path)

    first, second, third = cached(), cached(), cached()
    assert hits_and_misses(first, loader_of(rows)) == (0, 4)
    assert hits_and_misses(second, loader_of(rows)) == (4, 0)
    with torch.no_grad():
        third.model.bert.encoder.layer[4].attention.self.key.weight[383, 0] += 1e-4
    assert hits_and_misses(third, loader_of(rows)) == (0, 4)
