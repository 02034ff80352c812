"""The output layer of a classifier: which parameters it has, and whether the one of a checkpoint fits the labels."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Collection, Sequence

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel

_log = logging.getLogger(__name__)

# What transformers calls labels that nobody named.
_UNNAMED = re.compile(r"label_(\d+)")


def empty_classifier(
    config: PreTrainedConfig, *, trust_remote_code: bool, dtype: torch.dtype | None = None
) -> PreTrainedModel:
    """Returns a classifier without weights, on the meta device.

    Args:
        config: The model's config, with its number of labels.
        trust_remote_code: Whether code that comes with the model may run.
        dtype: The type of its parameters; None for the one in the config.
    """
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForSequenceClassification.from_config(  # type: ignore[no-untyped-call]
            config, trust_remote_code=trust_remote_code, **({} if dtype is None else {"dtype": dtype})
        )
    return model


def output_parameters(config: PreTrainedConfig, *, trust_remote_code: bool) -> dict[str, int]:
    """Returns the parameters that have one entry per label, and the dimension along which they have it.

    They are found by building the model for one label more, without weights, and looking at what grew.

    Args:
        config: The model's config, with its number of labels.
        trust_remote_code: Whether code that comes with the model may run.
    """
    wider = copy.deepcopy(config)
    wider.num_labels = (config.num_labels or 0) + 1
    as_is = empty_classifier(config, trust_remote_code=trust_remote_code)
    grown = dict(empty_classifier(wider, trust_remote_code=trust_remote_code).named_parameters())
    found = {}
    for name, parameter in as_is.named_parameters():
        for dimension, (size, wider_size) in enumerate(zip(parameter.shape, grown[name].shape, strict=True)):
            if size != wider_size:
                found[name] = dimension
    return found


def label_order(old: Sequence[str], new: Sequence[str]) -> list[int] | None:
    """Returns, for each new label, its place among the old ones, or None where the labels are not the same.

    Case is no difference, and the names that transformers gives to unnamed labels equal plain numbers.

    >>> label_order(["NEGATIVE", "POSITIVE"], ["positive", "negative"])
    [1, 0]
    >>> label_order(["LABEL_0", "LABEL_1"], ["0", "1"])
    [0, 1]
    >>> label_order(["LABEL_0", "LABEL_1"], ["ham", "spam"]) is None
    True
    """
    old_names = [_UNNAMED.sub(r"\1", name.casefold()) for name in old]
    new_names = [_UNNAMED.sub(r"\1", name.casefold()) for name in new]
    if sorted(old_names) != sorted(new_names) or len(set(new_names)) != len(new_names):
        return None
    return [old_names.index(name) for name in new_names]


def fit_output_layer(
    model: PreTrainedModel,
    *,
    old_labels: Sequence[str],
    labels: Sequence[str],
    fresh_parameters: Collection[str],
    trust_remote_code: bool,
) -> tuple[str, ...]:
    """Makes the output layer that came with a checkpoint fit the labels; returns the parameters that had to be fresh.

    An output layer for the same labels is kept, its rows put in the order of the labels. One for other labels, of which
    there happen to be as many, is made anew: it would start from weights that mean something else.

    Args:
        model: The loaded model.
        old_labels: The labels of the checkpoint in the order of their ids.
        labels: The labels of the data in the order of their ids.
        fresh_parameters: The parameters that the checkpoint did not give.
        trust_remote_code: Whether code that comes with the model may run.
    """
    order = label_order(old_labels, labels)
    if order == list(range(len(labels))):
        return ()
    outputs = output_parameters(model.config, trust_remote_code=trust_remote_code)
    given = {name: dimension for name, dimension in outputs.items() if name not in fresh_parameters}
    if not given:
        return ()
    if order is not None:
        with torch.no_grad():
            for name, dimension in given.items():
                parameter = model.get_parameter(name)
                parameter.copy_(parameter.index_select(dimension, torch.tensor(order, device=parameter.device)))
        return ()
    _log.info(
        "The checkpoint classifies %s and the data %s: the output layer starts anew. Where these are the same labels "
        "by other names, list them in data.labels as the checkpoint spells them.",
        ", ".join(old_labels),
        ", ".join(labels),
    )
    _initialize(model, given)
    return tuple(given)


def _initialize(model: PreTrainedModel, names: Collection[str]) -> None:
    """Gives new values to the parameters of a model's output layer, of the kind that the model itself starts from."""
    for owner in dict.fromkeys(name.rpartition(".")[0] for name in names):
        module = model.get_submodule(owner)
        for name, parameter in list(module.named_parameters(recurse=False)):
            # Loading has marked the old parameters as not to be initialised.
            module.register_parameter(name, nn.Parameter(torch.empty_like(parameter)))
        # The only way to a model's own initialisation of one module: transformers has no public function for it.
        model._init_weights(module)  # type: ignore[no-untyped-call]
