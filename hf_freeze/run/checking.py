"""Config in, report on its data out: what would make a result wrong, told before any weights are read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import TrainingArguments

from hf_freeze.config import RunConfig
from hf_freeze.insight.check import DataReport, Split, check_data
from hf_freeze.insight.lengths import Batching
from hf_freeze.run.planning import empty_model, prepared_data
from hf_freeze.tasks import PreparedData, get_task
from hf_freeze.tasks.data import count_tokens
from hf_freeze.tasks.tokenizers import resolve_max_length
from hf_freeze.training.arguments import training_arguments

_ROWS_AT_ONCE = 10_000


def check(config: RunConfig) -> DataReport:
    """Looks through the rows that a config trains and evaluates on.

    Args:
        config: The config.

    Raises:
        ConfigError: The data has not what the config says; a split has no rows; a label is missing or unknown.
    """
    task, section = get_task(config.model.task), config.model
    args = training_arguments(config.training)
    data = prepared_data(task, config.data, allow_blank=True)
    tokenizer = task.load_tokenizer(
        section.name_or_path,
        trust_remote_code=section.trust_remote_code,
        from_pretrained=section.from_pretrained_options,
    )
    lengths = {
        role: count_tokens(rows, tokenizer=tokenizer, text_columns=data.text_columns, split=data.splits[role])
        for role, rows in rows_by_role(data).items()
    }
    max_length = resolve_max_length(
        config.data.max_length,
        model=empty_model(section, num_labels=data.num_labels),
        tokenizer=tokenizer,
        is_pair=len(data.text_columns) == 2,
    )
    return report_on(data, lengths, args, max_length=max_length, lengths_are_cut=False)


def report_on(
    data: PreparedData,
    lengths: Mapping[str, np.ndarray[Any, Any]],
    args: TrainingArguments,
    *,
    max_length: int | None,
    lengths_are_cut: bool,
) -> DataReport:
    """Returns the report on rows that have been read and tokenised.

    Args:
        data: The rows, with their texts.
        lengths: The number of tokens of every row, by role.
        args: How they become batches.
        max_length: The number of tokens at which rows are cut; None where they are not.
        lengths_are_cut: Whether the lengths were taken after cutting.
    """
    splits = [
        Split(
            role,
            data.splits[role],
            texts=_texts(rows, data.text_columns),
            labels=np.asarray(rows["labels"][:]),
            lengths=lengths[role],
            batching=_batching(args, role),
        )
        for role, rows in rows_by_role(data).items()
    ]
    return check_data(
        splits,
        labels=data.labels,
        problem_type=data.problem_type,
        max_length=max_length,
        lengths_are_cut=lengths_are_cut,
    )


def rows_by_role(data: PreparedData) -> dict[str, Dataset]:
    """Returns the splits that exist, by role.

    Args:
        data: The rows.
    """
    splits = {"train": data.train, "validation": data.validation, "test": data.test}
    return {role: rows for role, rows in splits.items() if rows is not None}


def _texts(rows: Dataset, columns: tuple[str, ...]) -> Iterator[tuple[str | None, ...]]:
    for batch in rows.select_columns(list(columns)).iter(_ROWS_AT_ONCE):
        yield from zip(*(batch[name] for name in columns), strict=True)


def _batching(args: TrainingArguments, role: str) -> Batching:
    order = args.train_sampling_strategy
    if role == "train":
        size = args.train_batch_size
        return Batching(order, size, size * args.gradient_accumulation_steps)
    # Evaluation goes through the rows as they come, unless lengths are grouped.
    size = args.eval_batch_size
    return Batching("group_by_length" if order == "group_by_length" else "sequential", size, size)
