"""Classifying texts and pairs of texts: single label, multi label and regression."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from datasets import Dataset
from transformers import DataCollatorWithPadding, EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase

from hf_freeze.errors import ConfigError
from hf_freeze.tasks.columns import find_label_columns, find_text_columns, holds_floats, item_of
from hf_freeze.tasks.data import check_texts, tokenize_rows
from hf_freeze.tasks.encoding import distinct_labels, encode_labels, has_labels, warn_about_one_class
from hf_freeze.tasks.labels import ProblemType, check_labels, decide_problem_type, infer_labels
from hf_freeze.tasks.metrics import build_compute_metrics
from hf_freeze.tasks.models import build_empty_classifier, load_classifier
from hf_freeze.tasks.registry import LoadedModel, PreparedData, register_task
from hf_freeze.tasks.splits import load_splits
from hf_freeze.tasks.tokenizers import load_tokenizer, resolve_max_length, share_pad_token

_log = logging.getLogger(__name__)


@register_task("text-classification")
class TextClassification:
    """Predicts labels or a number from a text or a pair of texts."""

    auto_class = "AutoModelForSequenceClassification"

    def prepare_data(
        self,
        load_dataset: Mapping[str, Any],
        *,
        text_columns: str | Sequence[str] | None = None,
        label_column: str | Sequence[str] | None = None,
        labels: Sequence[object] | None = None,
        problem_type: str | None = None,
        splits: Mapping[str, str | None] | None = None,
        allow_blank: bool = False,
    ) -> PreparedData:
        """Loads a dataset, finds its texts and labels, checks them, and turns labels into numbers.

        Args:
            load_dataset: The arguments of `datasets.load_dataset`.
            text_columns: The column of texts, or the two of a pair; None to infer them.
            label_column: The column of labels, or one column per label; None to infer it.
            labels: The names of the labels in the order of their ids; None for those that the training split has, in
                the order of numbers or letters.
            problem_type: What transformers calls the problem; None to infer it.
            splits: Split names or expressions by role (`train`, `validation`, `test`), where they differ.
            allow_blank: Whether texts may be missing or blank, which training refuses.

        Raises:
            ConfigError: Something of this does not exist, is ambiguous, or does not fit the rest.
        """
        rows, chosen = load_splits(load_dataset, splits=splits)
        columns = rows["train"].features
        label_columns = find_label_columns(columns, label_column=label_column, text_columns=text_columns)
        texts = find_text_columns(columns, text_columns=text_columns, label_columns=label_columns)
        problem = decide_problem_type(columns, label_columns=label_columns, problem_type=problem_type)
        names = _label_names(rows["train"], label_columns=label_columns, problem_type=problem, labels=labels)
        _leave_out_unlabelled_test(rows, chosen, label_columns, is_named="test" in (splits or {}))
        encoded = {
            role: _encoded(dataset, texts, label_columns, problem, names, chosen[role], allow_blank=allow_blank)
            for role, dataset in rows.items()
        }
        if problem == "single_label_classification":
            warn_about_one_class([names[i] for i in encoded["train"].unique("labels")], split=chosen["train"])
        return PreparedData(
            train=encoded["train"],
            validation=encoded.get("validation"),
            test=encoded.get("test"),
            text_columns=texts,
            label_columns=label_columns,
            labels=names,
            problem_type=problem,
            splits=chosen,
        )

    def load_model(
        self,
        name_or_path: str,
        data: PreparedData,
        *,
        trust_remote_code: bool = False,
        from_pretrained: Mapping[str, Any] | None = None,
    ) -> LoadedModel:
        """Loads a pretrained model with an output for each label of the data, and its tokenizer.

        Args:
            name_or_path: A folder, or the name of a model on the hub.
            data: The prepared data.
            trust_remote_code: Whether code that comes with the model may run.
            from_pretrained: Further arguments of `from_pretrained`.

        Raises:
            ConfigError: Model or tokenizer cannot be loaded; pickled weights are refused.
        """
        tokenizer = load_tokenizer(name_or_path, trust_remote_code=trust_remote_code, from_pretrained=from_pretrained)
        model, fresh = load_classifier(
            name_or_path,
            labels=data.labels,
            problem_type=data.problem_type,
            trust_remote_code=trust_remote_code,
            from_pretrained=from_pretrained,
        )
        share_pad_token(model, tokenizer)
        return LoadedModel(model=model, tokenizer=tokenizer, fresh_parameters=fresh)

    def load_tokenizer(
        self, name_or_path: str, *, trust_remote_code: bool = False, from_pretrained: Mapping[str, Any] | None = None
    ) -> PreTrainedTokenizerBase:
        """Loads the tokenizer of a model without the model.

        Args:
            name_or_path: A folder, or the name of a model on the hub.
            trust_remote_code: Whether code that comes with the model may run.
            from_pretrained: Further arguments of `from_pretrained`.

        Raises:
            ConfigError: There is no tokenizer.
        """
        return load_tokenizer(name_or_path, trust_remote_code=trust_remote_code, from_pretrained=from_pretrained)

    def tokenize(self, data: PreparedData, loaded: LoadedModel, *, max_length: int | None = None) -> PreparedData:
        """Returns the data with model inputs in the place of texts, not padded yet.

        Args:
            data: The prepared data.
            loaded: The model and its tokenizer.
            max_length: Longer texts are cut to this many tokens; None for as many as the model can read.

        Raises:
            ConfigError: The model cannot read as many tokens.
        """
        length = resolve_max_length(
            max_length, model=loaded.model, tokenizer=loaded.tokenizer, is_pair=len(data.text_columns) == 2
        )
        tokenized = {
            role: tokenize_rows(
                rows,
                tokenizer=loaded.tokenizer,
                text_columns=data.text_columns,
                max_length=length,
                split=data.splits[role],
            )
            for role, rows in (("train", data.train), ("validation", data.validation), ("test", data.test))
            if rows is not None
        }
        return replace(data, **tokenized)

    def data_collator(self, loaded: LoadedModel) -> DataCollatorWithPadding:
        """Returns what makes a batch of rows, padded to the longest of them.

        Args:
            loaded: The model and its tokenizer.
        """
        return DataCollatorWithPadding(loaded.tokenizer)

    def compute_metrics(
        self, data: PreparedData, names: Sequence[str] | None = None, *, trust_remote_code: bool = False
    ) -> Callable[[EvalPrediction], dict[str, float]]:
        """Returns what a trainer calls with its predictions, to get a number for every metric.

        Args:
            data: The prepared data.
            names: Metrics; None for the usual ones of the problem.
            trust_remote_code: Whether metrics that users of the hub have published may run.

        Raises:
            ConfigError: A metric cannot be loaded, or does not fit the problem.
        """
        return build_compute_metrics(
            names, problem_type=data.problem_type, num_labels=data.num_labels, trust_remote_code=trust_remote_code
        )

    def build_empty_model(
        self,
        name_or_path: str,
        *,
        num_labels: int = 2,
        trust_remote_code: bool = False,
        from_pretrained: Mapping[str, Any] | None = None,
    ) -> PreTrainedModel:
        """Returns the model without weights, on the meta device: enough to see what a plan would do.

        Args:
            name_or_path: A folder with a config, or the name of a model on the hub.
            num_labels: The number of outputs.
            trust_remote_code: Whether code that comes with the model may run.
            from_pretrained: Further arguments of `from_pretrained`.

        Raises:
            ConfigError: There is no such model, or it cannot classify text.
        """
        return build_empty_classifier(
            name_or_path,
            num_labels=num_labels,
            trust_remote_code=trust_remote_code,
            from_pretrained=from_pretrained,
        )


def _leave_out_unlabelled_test(
    rows: dict[str, Dataset], chosen: dict[str, str], label_columns: Sequence[str], *, is_named: bool
) -> None:
    """Removes a test split that keeps its labels back, as published ones do, unless the config names it."""
    if "test" in rows and not is_named and not has_labels(rows["test"], label_columns):
        _log.info("The split %r has no labels, so it is left out.", chosen["test"])
        del rows["test"], chosen["test"]


def _encoded(
    dataset: Dataset,
    text_columns: Sequence[str],
    label_columns: Sequence[str],
    problem_type: ProblemType,
    labels: Sequence[str],
    split: str,
    *,
    allow_blank: bool,
) -> Dataset:
    """Returns the rows of a split with their labels as numbers, once it is known that no text is empty, or may be."""
    if not allow_blank:
        check_texts(dataset, text_columns=text_columns, split=split)
    return encode_labels(
        dataset,
        text_columns=text_columns,
        label_columns=label_columns,
        problem_type=problem_type,
        labels=labels,
        split=split,
    )


def _label_names(
    dataset: Dataset, *, label_columns: Sequence[str], problem_type: ProblemType, labels: Sequence[object] | None
) -> tuple[str, ...]:
    """Returns the names of the labels in the order of their ids; none for regression."""
    if problem_type == "regression" or len(label_columns) > 1:
        if labels is not None:
            why = "a regression has none" if problem_type == "regression" else "the label columns name them"
            raise ConfigError(f"data.labels: labels cannot be listed here, as {why}. Leave the key out.")
        return () if problem_type == "regression" else tuple(label_columns)
    if labels is not None:
        return check_labels(labels)
    item = item_of(dataset.features[label_columns[0]])
    if problem_type == "multi_label_classification" and holds_floats(item):
        return tuple(str(position) for position in range(len(dataset[label_columns[0]][0] or ())))
    return infer_labels(distinct_labels(dataset, label_columns[0]), item)
