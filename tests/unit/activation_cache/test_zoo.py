"""What the activation cache says of a hundred architectures, and that training is the same where it is on."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from hf_freeze import ActivationCache, LayoutError, freeze_model
from tests.unit.activation_cache import examples
from tests.zoo import NUM_ROWS, ZOO, Batch

EXACT = "exact"
REASONS = {
    "config": "off: output_router_logits is true in the model's config: the frozen blocks have to run for it",
    "not modules": "off: the model does not call its blocks as modules, one after the other",
    "padding": (
        "off: hidden states cannot be cut to the real tokens of a row, since padding changes them or they have other "
        "positions, and batches are padded to different lengths; rows padded to one length can be cached"
    ),
    "padding is read": (
        "off: hidden states cannot be cut to the real tokens of a row, since the loss, or what the model makes of a "
        "row, depends on what stands at its padding, and batches are padded to different lengths; rows padded to one "
        "length can be cached"
    ),
    # It picks the patches of an image at random, in another order each time.
    "random": "off: the model draws random numbers each time it is called, in eval mode too",
    "reads more": "off: the model reads more of its frozen blocks than their hidden states",
    "shared blocks": (
        "not supported: AlbertForSequenceClassification: its blocks are shared; got config.num_hidden_layers=3 and 1 "
        "in 'albert.encoder.albert_layer_groups'. A block that runs several times cannot be frozen in one place and "
        "trained in another. Set model.blocks_path to 'albert.encoder.albert_layer_groups' to treat what is there as "
        "the blocks, or choose a model whose blocks have weights of their own."
    ),
    "several lists": (
        "not supported: {}: which ModuleList holds the blocks cannot be told, as several stand side by side. "
        "ModuleLists that exist: {}. Set model.blocks_path to the one that holds the blocks."
    ),
    "trains inside": "off: a module that trains runs among the frozen blocks",
}
_XLM_LISTS = ", ".join(
    f"'transformer.{name}' (3 elements)" for name in ("attentions", "ffns", "layer_norm1", "layer_norm2")
)
_PVT_LISTS = "'pvt.encoder.block' (2 elements), 'pvt.encoder.patch_embeddings' (2 elements)"
# All others are exact.
VERDICTS = {
    **dict.fromkeys(("canine", "convbert", "led", "longformer", "mobilebert", "nystromformer"), REASONS["padding"]),
    **dict.fromkeys(("speech_to_text", "yoso"), REASONS["padding"]),
    "switch_transformers": REASONS["padding is read"],  # Padding takes places of its experts.
    "xlnet": REASONS["padding is read"],  # It reads its classes at the last position.
    **dict.fromkeys(("clip", "clip with as many words as patches"), REASONS["padding"]),
    "wav2vec2 padded to the longest": REASONS["padding"],
    **dict.fromkeys(("gemma3n_text", "lilt", "pegasus_x", "swinv2"), REASONS["reads more"]),
    "vilt": REASONS["random"],
    "wav2vec2 with weighted layers": REASONS["reads more"],
    **dict.fromkeys(("funnel", "squeezebert"), REASONS["not modules"]),
    **dict.fromkeys(
        ("deberta-v2 with convolution", "deberta-v2 with convolution, no dropout"), REASONS["trains inside"]
    ),
    "mixtral with router logits": REASONS["config"],
    "albert": REASONS["shared blocks"],
    "flaubert": REASONS["several lists"].format("FlaubertForSequenceClassification", _XLM_LISTS),
    "pvt": REASONS["several lists"].format("PvtForImageClassification", _PVT_LISTS),
    "xlm": REASONS["several lists"].format("XLMForSequenceClassification", _XLM_LISTS),
}
# Twice over the same rows in other company, padded to other lengths, and once more as at first.
BATCHES = [[0, 1], [2, 3], [0, 2], [1, 3], [0, 1], [2, 3]]


def collate(rows: Sequence[Batch], *, to_the_longest: bool) -> Batch:
    """Stacks rows; what is padding in all of them is cut off if asked for."""
    batch = {
        name: torch.stack([row[name] for row in rows]) if isinstance(value, torch.Tensor) else value
        for name, value in rows[0].items()
    }
    if not to_the_longest:
        return batch
    width, longest = batch["attention_mask"].shape[1], int(batch["attention_mask"].sum(dim=1).max())
    return {
        name: value[:, :longest].contiguous()
        if isinstance(value, torch.Tensor) and value.shape[1:2] == (width,)
        else value
        for name, value in batch.items()
    }


def loader_of(batch: Batch) -> DataLoader[Any]:
    rows = [
        {name: value[index] if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
        for index in range(NUM_ROWS)
    ]
    to_the_longest = "attention_mask" in batch and bool(batch["attention_mask"].all(dim=1).any())
    return DataLoader(rows, batch_sampler=BATCHES, collate_fn=partial(collate, to_the_longest=to_the_longest))  # type: ignore[arg-type]


# AdamW would turn rounding errors of tiny gradients into steps of full size.
train = partial(examples.train, passes=1, optimizer_class=torch.optim.SGD, learning_rate=0.05)


@pytest.mark.parametrize("name", ZOO)
# WavLM hands torch a mask of booleans and a bias of floats.
@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask:UserWarning")
def test_training_is_the_same_or_the_cache_says_why_it_is_off(name: str, tmp_path: Path) -> None:
    architecture, expected = ZOO[name], VERDICTS.get(name, EXACT)
    batch = architecture.batch()
    if expected.startswith("not supported: "):
        with pytest.raises(LayoutError) as caught:
            freeze_model(architecture.build(), {"blocks": {"first": 2}})
        assert f"not supported: {caught.value}" == expected
        return
    model = freeze_model(architecture.build(), {"blocks": {"first": 2}})
    cache = ActivationCache(model, section={"enabled": "auto", "dir": str(tmp_path)})
    verdict = EXACT if cache.prepare(batch) else f"off: {cache.reason}"
    assert verdict == expected
    if verdict != EXACT:
        return
    cached = train(model, cache.wrap(loader_of(batch)), cache.serve)
    cache.close()
    again = freeze_model(architecture.build(), {"blocks": {"first": 2}})
    # Losses of 6 are rounded to 5e-7, and steps of weights this large make more of it.
    assert cached == pytest.approx(train(again, loader_of(batch), contextlib.nullcontext), abs=1e-5, rel=1e-5)
    assert cache.stats.hits > 0


def test_the_table_has_at_least_sixty_four_architectures() -> None:
    assert len({architecture.model_type for architecture in ZOO.values()}) >= 64
    assert set(VERDICTS) < set(ZOO)
