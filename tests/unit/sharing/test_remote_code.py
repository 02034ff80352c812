"""Code that comes with a model runs only where it is trusted."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
import transformers

from hf_freeze import load_model
from hf_freeze.errors import ConfigError
from hf_freeze.sharing.merging import merged_model

CODE = """
from pathlib import Path

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

Path({mark!r}).touch()


class OwnConfig(PreTrainedConfig):
    model_type = "own"


class OwnModel(PreTrainedModel):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.linear = nn.Linear(2, 2)
        self.post_init()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model whose code leaves a file where it runs."""
    model = tmp_path / "own"
    model.mkdir()
    own = {"AutoConfig": "modeling_own.OwnConfig", "AutoModel": "modeling_own.OwnModel"}
    config = {"model_type": "own", "architectures": ["OwnModel"], "auto_map": own}
    (model / "config.json").write_text(json.dumps(config))
    (model / "modeling_own.py").write_text(CODE.format(mark=str(tmp_path / "ran")))
    tensors = {"linear.weight": torch.ones(2, 2), "linear.bias": torch.zeros(2)}
    safetensors.torch.save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    return model


@pytest.mark.parametrize("load", [load_model, merged_model])
def test_it_does_not_run_by_itself(folder: Path, load: object) -> None:
    assert callable(load)
    with pytest.raises(ConfigError) as caught:
        load(folder)
    assert str(caught.value) == (
        f"{folder}: this model comes with code of its own, which does not run unless you trust it; got the model_type "
        f"'own', which transformers {transformers.__version__} does not have. Read the code, and set trust_remote_code."
    )
    assert not (folder.parent / "ran").exists()


def test_it_runs_where_it_is_trusted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(folder.parent / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    model = load_model(folder, trust_remote_code=True)
    assert type(model).__name__ == "OwnModel"
    assert torch.equal(model.linear.weight, torch.ones(2, 2))
    assert (folder.parent / "ran").exists()
