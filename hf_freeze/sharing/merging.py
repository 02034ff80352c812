"""Makes one plain, frozen model in eval mode of any trained model, and writes it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from huggingface_hub import snapshot_download
from peft import PeftModel
from transformers import PreTrainedModel

from hf_freeze.errors import ConfigError, PlanError
from hf_freeze.plan.apply import freeze_all
from hf_freeze.plan.prepare import merge_adapters
from hf_freeze.schedules.timeline import TIMELINE_FILE
from hf_freeze.sharing.classes import as_dtype, convert
from hf_freeze.sharing.loading import load_source
from hf_freeze.sharing.sources import Source, find_source
from hf_freeze.training.card import CARD_FILE, has_card
from hf_freeze.training.card import TIMELINE_FILE as PICTURE_FILE
from hf_freeze.training.record import remove_models
from hf_freeze.training.uploading import CONFIG_FILE

# What processors, tokenizers among them, are saved as.
_PROCESSOR_FILES: Final = (
    "added_tokens.json",
    "bpe.codes",
    "byte_maps.json",
    "chat_template*",
    "dict.txt",
    "emoji.json",
    "entity_vocab.json",
    "merges.txt",
    "*.model",
    "normalizer.json",
    "*preprocessor_config.json",
    "processor_config.json",
    "prophetnet.tokenizer",
    "special_tokens_map.json",
    "tokenizer*.json",
    "vocab*",
    "word_*.json",
)


def merged_model(
    path_or_repo: str | Path,
    *,
    revision: str | None = None,
    base: str | Path | None = None,
    dtype: torch.dtype | str | None = None,
    trust_remote_code: bool = False,
    **from_pretrained_options: Any,
) -> PreTrainedModel:
    """Loads a trained model of any kind as one plain model: adapters merged, every parameter frozen, in eval mode.

    Adapters are merged in the type that they were trained in, and the weights are converted afterwards.

    Args:
        path_or_repo: The folder that a run has written, or the name of a repository on the Hub.
        revision: The revision of that repository.
        base: The base model of adapters or of a delta, where it has moved.
        dtype: The type of the weights; None for the type that they were saved in.
        trust_remote_code: Whether code that comes with the model may run.
        from_pretrained_options: Further arguments of `from_pretrained`, such as `token`.

    Raises:
        ConfigError: There is no model, or its files are missing, damaged or pickled.
        PlanError: The base model is another one, or the adapters cannot be merged.
    """
    source = find_source(path_or_repo, revision=revision, options=from_pretrained_options)
    return _merge_source(
        source, base=base, dtype=dtype, trust_remote_code=trust_remote_code, options=from_pretrained_options
    )


def _merge_source(
    source: Source,
    *,
    base: str | Path | None,
    dtype: torch.dtype | str | None,
    trust_remote_code: bool,
    options: Mapping[str, Any],
) -> PreTrainedModel:
    as_dtype(dtype, torch.float32)  # A wrong name is found before anything is loaded.
    loaded = load_source(source, base=base, trust_remote_code=trust_remote_code, options=options)
    model = merge_adapters(loaded) if isinstance(loaded, PeftModel) else loaded
    if not isinstance(model, PreTrainedModel):
        raise PlanError(
            f"{source.name}: what is left after merging is no model of Transformers; got a {type(model).__name__}. "
            "Load it with peft."
        )
    freeze_all(convert(model, dtype))
    return model


def write_merged(
    path_or_repo: str | Path,
    folder: str | Path,
    *,
    revision: str | None = None,
    base: str | Path | None = None,
    dtype: torch.dtype | str | None = None,
    trust_remote_code: bool = False,
    overwrite: bool = False,
    **from_pretrained_options: Any,
) -> PreTrainedModel:
    """Writes the merged model with its tokenizer or processor, as `save_pretrained` does.

    Args:
        path_or_repo: The folder that a run has written, or the name of a repository on the Hub.
        folder: Where to write; it is made where it does not exist.
        revision: The revision of that repository.
        base: The base model of adapters or of a delta, where it has moved.
        dtype: The type of the weights; None for the type that they were saved in.
        trust_remote_code: Whether code that comes with the model may run.
        overwrite: Whether a folder that holds files already may be written to.
        from_pretrained_options: Further arguments of `from_pretrained`, such as `token`.

    Returns:
        The model that was written.

    Raises:
        ConfigError: There is no model, its files are damaged, or the folder holds something.
        PlanError: The base model is another one, or the adapters cannot be merged.
    """
    target = Path(folder)
    check_target(target, path_or_repo, overwrite=overwrite)
    source = find_source(path_or_repo, revision=revision, options=from_pretrained_options)
    model = _merge_source(
        source, base=base, dtype=dtype, trust_remote_code=trust_remote_code, options=from_pretrained_options
    )
    remove_run(target)
    model.save_pretrained(target)
    copy_processor(source, target)
    return model


def remove_run(target: Path) -> None:
    """Removes a model of any kind, and what was said of its run, before another model is written.

    A card that somebody else wrote stays.

    Args:
        target: The folder that will be written to.
    """
    remove_models(target)
    for name in (CONFIG_FILE, TIMELINE_FILE, PICTURE_FILE, *((CARD_FILE,) if has_card(target) else ())):
        (target / name).unlink(missing_ok=True)


def check_target(target: Path, path_or_repo: str | Path, *, overwrite: bool) -> None:
    """Refuses a folder in which something would be lost.

    Args:
        target: Where to write.
        path_or_repo: Where the model is.
        overwrite: Whether a folder that holds files already may be written to.

    Raises:
        ConfigError: It is the folder of the model itself, is no folder, or holds files.
    """
    if target.exists() and target.resolve() == Path(path_or_repo).resolve():
        raise ConfigError(
            f"{target}: this is the folder of the model itself; got it as the folder to write to. Name another folder."
        )
    if target.exists() and not target.is_dir():
        raise ConfigError(f"{target}: this is a file; got it as the folder to write to. Name a folder.")
    held = sorted(entry.name for entry in target.iterdir()) if target.is_dir() else []
    if held and not overwrite:
        raise ConfigError(
            f"{target}: this folder is not empty; got {', '.join(held[:3])} and {max(0, len(held) - 3)} more in it. "
            "Name another folder, or allow it to be overwritten."
        )


def copy_processor(source: Source, target: Path) -> None:
    """Copies the files of the tokenizer or processor.

    Args:
        source: Where the model is.
        target: The folder to copy to.
    """
    folder = Path(source.name)
    if not folder.is_dir():
        folder = Path(snapshot_download(source.name, allow_patterns=list(_PROCESSOR_FILES), **source.download_options))
    for pattern in _PROCESSOR_FILES:
        for file in (folder / source.subfolder).glob(pattern):
            if file.is_file():
                shutil.copyfile(file, target / file.name)
