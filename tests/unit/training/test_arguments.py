from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hf_freeze.errors import ConfigError
from hf_freeze.training.arguments import check_evaluation, check_output_folder, refusal, training_arguments


def test_the_training_section_becomes_arguments(tmp_path: Path) -> None:
    arguments = training_arguments({"output_dir": str(tmp_path), "learning_rate": 0.5, "use_cpu": True})
    assert (arguments.output_dir, arguments.learning_rate) == (str(tmp_path), 0.5)


def test_memory_is_pinned_only_where_there_is_a_device_to_copy_to(tmp_path: Path) -> None:
    options = {"output_dir": str(tmp_path)}
    assert training_arguments(options).dataloader_pin_memory is torch.accelerator.is_available()
    assert training_arguments({**options, "dataloader_pin_memory": True}).dataloader_pin_memory is True


def test_what_training_arguments_refuse_is_said(tmp_path: Path) -> None:
    options = {"output_dir": str(tmp_path), "load_best_model_at_end": True, "eval_strategy": "epoch"}
    with pytest.raises(ConfigError) as caught:
        training_arguments({**options, "save_strategy": "no"})
    assert str(caught.value) == (
        "training: TrainingArguments refuses these options; --load_best_model_at_end requires the save and eval "
        'strategy to match, except when --save_strategy="best", but found - Evaluation strategy: '
        "IntervalStrategy.EPOCH - Save strategy: SaveStrategy.NO. Change the options that it names."
    )


def test_a_refusal_is_one_line_that_ends_once() -> None:
    assert str(refusal("Trainer", ValueError("no\n  such thing."))) == (
        "training: Trainer refuses these options; no such thing. Change the options that it names."
    )


def test_an_output_folder_is_made_and_left_empty(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    check_output_folder(str(folder))
    assert list(folder.iterdir()) == []


def test_an_output_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folder = str(tmp_path / "file" / "out")
    with pytest.raises(ConfigError) as caught:
        check_output_folder(folder)
    assert str(caught.value) == (
        f"training.output_dir: this folder cannot be written; got {folder!r}. The system says: Not a directory. "
        "Name a folder that you may write."
    )


def test_evaluation_without_rows_for_it_is_refused(tmp_path: Path) -> None:
    arguments = training_arguments({"output_dir": str(tmp_path), "eval_strategy": "epoch"})
    with pytest.raises(ConfigError) as caught:
        check_evaluation(arguments, splits=["train", "test", "train"], has_rows=False)
    assert str(caught.value) == (
        "training.eval_strategy: there are no rows to evaluate on; got 'epoch'. The data set has the splits test, "
        "train. Name a split in data.splits.validation, or set training.eval_strategy to 'no'."
    )
    check_evaluation(arguments, splits=["train"], has_rows=True)


def test_no_rows_are_needed_where_no_evaluation_is_asked_for(tmp_path: Path) -> None:
    check_evaluation(training_arguments({"output_dir": str(tmp_path)}), splits=["train"], has_rows=False)
