"""Whether training would use the activation cache, as far as that is known without weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from transformers import PreTrainedModel

from hf_freeze.activation_cache.building import reason_of_cost
from hf_freeze.activation_cache.checks import reason_of_model, reason_of_plan
from hf_freeze.activation_cache.folders import check_folder
from hf_freeze.activation_cache.records import STORED_DTYPES
from hf_freeze.activation_cache.rows import Amount
from hf_freeze.activation_cache.shelf import Shelf
from hf_freeze.activation_cache.store import size_in_file
from hf_freeze.config import ActivationCacheConfig
from hf_freeze.errors import CacheError
from hf_freeze.plan.resolve import FreezePlan
from hf_freeze.run.settings import Lengths, Settings, lengths_of
from hf_freeze.tasks import PreparedData


def reason_without_weights(
    section: ActivationCacheConfig,
    plan: FreezePlan,
    model: PreTrainedModel,
    data: PreparedData | None,
    settings: Settings,
    *,
    num_processes: int,
) -> str | None:
    """Returns why training would not use the cache if nothing were stored yet, or None; nothing is created.

    Args:
        section: The `activation_cache` section.
        plan: What is frozen.
        model: The model, on any device.
        data: The tokenised rows; None where they are not known.
        settings: The training section.
        num_processes: How many processes share the rows.
    """
    if section.enabled is False:
        return "activation_cache.enabled is false"
    if (reason := reason_of_plan(plan) or reason_of_model(model)) is not None:
        return reason
    shelf = Shelf(section)
    try:
        check_folder(shelf.root, creates=False)
    except CacheError as error:
        return str(error)
    if data is None or (lengths := lengths_of(data)) is None:
        return None
    amounts = list(_amounts(section, model, lengths, settings, num_processes))
    if section.enabled == "auto" and (reason := reason_of_cost(amounts, position_seconds=1.0)) is not None:
        return f"{reason}, unless rows are stored already"
    # Other rows are stored when training meets them, as far as there is room.
    build = section.build
    built = [found for found, passes in amounts if build == "eager" or (build == "auto" and passes >= 1)]
    return shelf.reason_of_size(sum(found.missing_bytes for found in built))


def _amounts(
    section: ActivationCacheConfig, model: PreTrainedModel, lengths: Lengths, settings: Settings, num_processes: int
) -> Iterator[tuple[Amount, float]]:
    """Yields how much the rows of training and of evaluation are, and how often training passes over them."""
    position_bytes = model.config.get_text_config().hidden_size * STORED_DTYPES.get(section.dtype, model.dtype).itemsize

    def amount(tokens: Sequence[int], *, evaluates: bool) -> Amount:
        return Amount(
            num_rows=len(tokens),
            stored_share=0.0,
            row_bytes=sum(size_in_file(length * position_bytes) for length in tokens) / len(tokens),
            positions=sum(tokens) / len(tokens),
            padded_positions=settings.padded_length(tokens, evaluates=evaluates),
            fetch_seconds=0.0,
        )

    trained, evaluated = settings.passes(lengths, num_processes=num_processes)
    yield amount(lengths.train, evaluates=False), trained
    if lengths.validation and evaluated:
        yield amount(lengths.validation, evaluates=True), evaluated
