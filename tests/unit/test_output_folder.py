"""A folder that holds another run is refused, unless the config resumes or removes that run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from hf_freeze import run
from hf_freeze.config import RunConfig
from hf_freeze.errors import ConfigError
from hf_freeze.run.output_folder import begin_run, check_other_run
from tests import tiny_run

ADVICE = (
    "Name another folder, resume that run with training.resume_from_checkpoint=true, or remove it with "
    "save.overwrite=true."
)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., RunConfig]:
    model, rows = tiny_run.write_model(tmp_path / "model"), tiny_run.write_rows(tmp_path / "rows")

    def make_config(*, training: dict[str, Any] | None = None, **more: Any) -> RunConfig:
        return tiny_run.config(model, rows, tmp_path / "out", training=training, **more)

    return make_config


def message_of(config: RunConfig) -> str:
    with pytest.raises(ConfigError) as caught:
        check_other_run(config)
    return str(caught.value)


def test_another_run_is_refused_before_anything_is_loaded(make: Callable[..., RunConfig], tmp_path: Path) -> None:
    run.train(make(training={"save_strategy": "steps", "save_steps": 1}))
    with pytest.raises(ConfigError) as caught:
        run.Run(make(freeze={"blocks": {"first": 1}}))
    assert str(caught.value) == (
        f"training.output_dir: this folder holds another run; got {str(tmp_path / 'out')!r} with checkpoint-1, "
        f"checkpoint-2, checkpoint-3. {ADVICE}"
    )


def test_the_same_run_may_be_repeated_and_resumed(make: Callable[..., RunConfig]) -> None:
    (Path(str(make().training["output_dir"]))).mkdir()
    begin_run(make())
    check_other_run(make())
    check_other_run(make(save={"checkpoints": "full"}, allow_changed_plan=True))
    check_other_run(make(training={"max_steps": 9, "resume_from_checkpoint": True}))
    assert ADVICE in message_of(make(training={"max_steps": 9}))


@pytest.mark.parametrize("name", ["config.json", "adapter_config.json", "hf_freeze_delta.json", "checkpoint-7"])
def test_what_other_tools_wrote_is_refused(make: Callable[..., RunConfig], tmp_path: Path, name: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).touch()
    assert message_of(make()) == (
        f"training.output_dir: this folder holds another run; got {str(tmp_path / 'out')!r} with {name}. {ADVICE}"
    )


def test_what_is_no_run_is_left_alone(make: Callable[..., RunConfig], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").touch()
    check_other_run(make())
    begin_run(make(save={"overwrite": True}))
    assert (tmp_path / "out" / "notes.txt").exists()


def test_overwriting_removes_the_other_run(make: Callable[..., RunConfig], tmp_path: Path) -> None:
    run.train(make(training={"save_strategy": "steps", "save_steps": 1}, save={"format": "delta"}))
    assert (tmp_path / "out" / "hf_freeze_delta.json").exists()
    run.train(make(training={"max_steps": 2}, save={"overwrite": True}))
    held = {path.name for path in (tmp_path / "out").iterdir()}
    assert not any(name.startswith(("checkpoint-", "hf_freeze_delta")) for name in held)
    assert "classifier.weight" in load_file(tmp_path / "out" / "model.safetensors")


def test_a_config_of_another_release_counts_as_another_run(make: Callable[..., RunConfig], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "hf_freeze.yaml").write_text("nothing: {that: is known}\n")
    assert "holds another run" in message_of(make())


def test_the_folder_of_the_base_model_is_never_written_over(make: Callable[..., RunConfig], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    assert message_of(make(training={"output_dir": str(folder)}, save={"overwrite": True})) == (
        f"training.output_dir: this is the folder of the base model, which the run would write over; got "
        f"{str(folder)!r}. Name another folder."
    )
