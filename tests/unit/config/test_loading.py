"""Config files are read with what they extend and what overrides them, and every problem names its line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from transformers import TrainingArguments

from hf_freeze.config import ModelConfig, RunConfig, Selection, load_config
from hf_freeze.config.loading import LARGEST
from hf_freeze.config.options import REFUSED_FOR_TRAINING
from hf_freeze.errors import ConfigError

SMALLEST = """\
model: {name_or_path: bert}
data: {load_dataset: {path: imdb}}
training: {output_dir: runs/x}
"""
TOP = (
    "activation_cache, adapters, allow_changed_plan, data, freeze, lr_multipliers, metrics, model, monitor, save, "
    "schedule, search, training"
)
NUM_ARGUMENTS = len(TrainingArguments.__dataclass_fields__.keys() - REFUSED_FOR_TRAINING.keys())
SECTIONS = f"Sections: {TOP}. Write model, data and training."


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own is the current one, so that messages show relative paths."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    return tmp_path


def write(text: str, name: str = "configs/x.yaml") -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(text, encoding="utf-8")
    return name


def load(text: str, *overrides: str) -> RunConfig:
    return load_config(write(text), overrides)


def message_of(path: str | Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value)


class TestValues:
    def test_numbers_and_words_are_those_of_yaml_1_2(self) -> None:
        config = load(
            "model: {name_or_path: bert, revision: no}\n"
            "data: {load_dataset: {path: csv, name: 1:8, data_dir: 2024-01-01}}\n"
            "training: {output_dir: on, learning_rate: 2e-5, use_cpu: true}\n"
        )
        assert config.model.from_pretrained_options == {"revision": "no"}
        assert config.data.load_dataset == {"path": "csv", "name": "1:8", "data_dir": "2024-01-01"}
        assert config.training == {"output_dir": "on", "learning_rate": 2e-5, "use_cpu": True}

    def test_an_alias_repeats_what_it_names(self) -> None:
        config = load(SMALLEST + "adapters:\n- &one {peft_type: LORA, r: 4}\n- *one\n")
        assert config.adapters[0] == config.adapters[1]

    def test_a_byte_order_mark_is_no_part_of_the_first_key(self) -> None:
        Path("configs/x.yaml").write_bytes(b"\xef\xbb\xbf" + SMALLEST.encode())
        assert load_config("configs/x.yaml").model.name_or_path == "bert"

    def test_the_path_may_be_a_path(self) -> None:
        assert load_config(Path(write(SMALLEST))).model == ModelConfig(name_or_path="bert")


class TestOverrides:
    def test_they_are_laid_over_the_file_one_after_the_other(self) -> None:
        config = load(
            SMALLEST + "freeze: {blocks: {first: 4}}\nadapters: [{peft_type: LORA, r: 8}]\n",
            "training.learning_rate=2e-5",
            "training.learning_rate=3e-5",
            "freeze.blocks.last=2",
            "adapters.0.r=4",
            "model.revision=no",
            "metrics=[accuracy, f1]",
            "training.run_name='5'",
        )
        assert config.training == {"output_dir": "runs/x", "learning_rate": 3e-5, "run_name": "5"}
        assert config.freeze is not None
        assert config.freeze.blocks == Selection("last", 2)
        assert config.adapters[0].peft_options == {"r": 4}
        assert config.model.from_pretrained_options == {"revision": "no"}
        assert config.metrics == ("accuracy", "f1")

    def test_null_takes_a_section_away(self) -> None:
        assert load(SMALLEST + "freeze: {blocks: all}\n", "freeze=null").freeze is None

    def test_what_they_set_wrong_is_at_the_command_line(self) -> None:
        path = write(SMALLEST)
        assert message_of(path, "freeze.blocks.frist=8", "training.learning_rate='2e-5'", "adapters.0.r=4") == (
            "command line: freeze.blocks.frist: unknown key; got 8. "
            "Known keys: first, fraction, indices, last. Did you mean 'first'?\n"
            "command line: adapters: is not a list; got {0: {'r': 4}}. "
            "List of adapters of one PEFT method, each on its own blocks.\n"
            "command line: training.learning_rate: does not fit TrainingArguments; got '2e-5'. "
            "There it is a number. Write it without quotes."
        )

    def test_a_key_that_is_missing_beside_an_override_is_at_its_section(self) -> None:
        path = write("model: {name_or_path: bert}\ndata:\n  max_length: 8\ntraining: {output_dir: x}\n")
        assert message_of(path, "data.max_length=9") == (
            "configs/x.yaml:2: data.load_dataset: required key is missing; got max_length. "
            "Keyword arguments for datasets.load_dataset; path is required. Add it."
        )

    def test_extends_is_read_from_files_only(self) -> None:
        assert message_of(write(SMALLEST), "extends=shared.yaml") == (
            f"command line: extends: unknown key; got 'shared.yaml'. Known keys: {TOP}."
        )

    def test_those_that_cannot_be_read_are_told_with_the_problems_of_the_file(self) -> None:
        assert message_of(write(SMALLEST + "freez: {}\n"), "x", ".".join("a" * 65) + "=1", "metrics.0=f1") == (
            "command line: is not key=value; got 'x'. Write it like freeze.blocks.first=8.\n"
            "command line: is not key=value; got "
            f"'{'.'.join('a' * 65)[:119]}.... Write it like freeze.blocks.first=8.\n"
            "command line: metrics: is not a list; got {0: 'f1'}. "
            "List of the metrics that are computed; null: those of the task.\n"
            f"configs/x.yaml:4: freez: unknown key; got {{}}. Known keys: {TOP}. Did you mean 'freeze'?"
        )


class TestExtends:
    def test_later_keys_win(self) -> None:
        write(SMALLEST + "freeze: {blocks: {first: 4}, head: frozen}\nmetrics: [accuracy, f1]\n", "configs/shared.yaml")
        config = load(
            "extends: shared.yaml\ntraining: {seed: 1}\nfreeze: {blocks: {last: 2}}\nmetrics: [accuracy]\n",
        )
        assert config.training == {"output_dir": "runs/x", "seed": 1}
        assert config.freeze is not None
        assert (config.freeze.blocks, config.freeze.head) == (Selection("last", 2), "frozen")
        assert config.metrics == ("accuracy",)

    def test_a_chain_is_read_from_its_end(self) -> None:
        write(SMALLEST + "metrics: [f1]\n", "configs/deep/a.yaml")
        write("extends: deep/a.yaml\nmodel: {name_or_path: roberta}\n", "configs/b.yaml")
        config = load("extends: b.yaml\ndata: {max_length: 8}\n")
        assert config.model.name_or_path == "roberta"
        assert config.data.max_length == 8
        assert config.metrics == ("f1",)

    def test_it_is_relative_to_the_file_that_names_it(self) -> None:
        write(SMALLEST, "shared/a.yaml")
        write("extends: ../shared/a.yaml\n", "configs/sub/b.yaml")
        with pytest.raises(ConfigError, match=r"^configs/sub/b.yaml:1: extends: no such file; got 'configs/shared/a"):
            load_config("configs/sub/b.yaml")
        write("extends: ../../shared/a.yaml\n", "configs/sub/b.yaml")
        assert load_config("configs/sub/b.yaml").model.name_or_path == "bert"

    def test_problems_name_the_file_that_set_the_key(self) -> None:
        write(SMALLEST + "freeze:\n  haed: full\n  blocks: {first: -1}\n", "configs/shared.yaml")
        path = write("extends: shared.yaml\n\nfreeze:\n  embedings: full\ntraining: {sed: 1}\n")
        assert message_of(path) == (
            "configs/shared.yaml:6: freeze.blocks.first: is not a number of blocks; got -1. "
            "Write a whole number from 0 up.\n"
            "configs/shared.yaml:5: freeze.haed: unknown key; got 'full'. "
            "Known keys: always_train, blocks, embeddings, head, keep_dropout. Did you mean 'head'?\n"
            "configs/x.yaml:4: freeze.embedings: unknown key; got 'full'. "
            "Known keys: always_train, blocks, embeddings, head, keep_dropout. Did you mean 'embeddings'?\n"
            "configs/x.yaml:5: training.sed: unknown key; got 1. "
            f"Known keys: the {NUM_ARGUMENTS} keys of TrainingArguments. Did you mean 'seed'?"
        )

    def test_a_circle_is_shown_link_by_link(self) -> None:
        write("extends: c.yaml\n", "configs/b.yaml")
        write("# back\nextends: ./x.yaml\n", "configs/c.yaml")
        assert message_of(write("extends: b.yaml\n")) == (
            "configs/c.yaml:2: extends: goes in a circle; "
            "got configs/x.yaml -> configs/b.yaml -> configs/c.yaml -> configs/x.yaml. Remove one of its links."
        )

    def test_a_circle_through_a_symbolic_link_is_a_circle(self, folder: Path) -> None:
        path = write("extends: link.yaml\n")
        (folder / "configs/link.yaml").symlink_to("x.yaml")
        assert message_of(path) == (
            "configs/x.yaml:1: extends: goes in a circle; got configs/x.yaml -> configs/link.yaml. "
            "Remove one of its links."
        )

    @pytest.mark.parametrize("target", ["/etc/hostname", "../../outside.yaml", "../configs/../../outside.yaml"])
    def test_it_stays_below_the_folders_of_the_user(self, target: str, folder: Path) -> None:
        write(SMALLEST, str(folder.parent / "outside.yaml"))
        assert message_of(write(f"extends: {target}\n")) == (
            f"configs/x.yaml:1: extends: leaves the folder of the config; got {target!r}. "
            "Write a path relative to this file, to a file below that folder or the current one."
        )

    def test_a_symbolic_link_does_not_lead_out(self, folder: Path) -> None:
        (folder / "configs/link.yaml").symlink_to(write(SMALLEST, str(folder.parent / "outside.yaml")))
        assert message_of(write("extends: link.yaml\n")) == (
            "configs/x.yaml:1: extends: leaves the folder of the config; got 'link.yaml'. "
            "Write a path relative to this file, to a file below that folder or the current one."
        )

    @pytest.mark.parametrize(
        ("value", "got"),
        [
            ("[a.yaml]", "['a.yaml']"),
            ("3", "3"),
            ("''", "''"),
            ('"a\\0"', r"'a\x00'"),
            ("{a: b}", "{'a': 'b'}"),
            ("null", "None"),
        ],
    )
    def test_it_is_one_path(self, value: str, got: str) -> None:
        assert message_of(write(f"extends: {value}\n")) == (
            f"configs/x.yaml:1: extends: is not the name of a file; got {got}. Write one path, relative to this file."
        )

    def test_a_file_that_does_not_exist_is_told_at_the_key(self) -> None:
        write(SMALLEST, "configs/shared.yaml")
        assert message_of(write("\nextends: sharde.yaml\n")) == (
            "configs/x.yaml:2: extends: no such file; got 'configs/sharde.yaml'. "
            "The folder configs holds shared.yaml, x.yaml. Did you mean 'shared.yaml'?"
        )

    def test_what_was_found_before_a_file_is_missing_is_told_too(self) -> None:
        assert message_of(write("a: 1\na: 2\nextends: b.yaml\n")) == (
            "configs/x.yaml:2: a: stands twice; got 2. It is at configs/x.yaml:1 too. Keep one of them.\n"
            "configs/x.yaml:3: extends: no such file; got 'configs/b.yaml'. The folder configs holds x.yaml."
        )


class TestProblems:
    def test_all_are_told_together_each_with_its_line(self) -> None:
        path = write(
            "model:\n"
            "  name_or_path: bert\n"
            "  use_safetensors: false\n"
            "data:\n"
            "  max_length: '256'\n"
            "  load_dataset: {name: plain}\n"
            "freeze:\n"
            "  blocks: {frist: 8}\n"
            "adapters:\n"
            "- peft_type: LORA\n"
            "  modules_to_save: [classifier]\n"
            "- peft_type: LOR\n"
            "training:\n"
            "  learning_rate: '2e-5'\n"
            "metrics:\n"
            "- accuracy\n"
            "- ../f1\n"
            "sharing: {}\n"
        )
        lines = message_of(path).splitlines()
        assert [line.split(": ")[:2] for line in lines] == [
            ["configs/x.yaml:3", "model.use_safetensors"],
            ["configs/x.yaml:6", "data.load_dataset.path"],
            ["configs/x.yaml:5", "data.max_length"],
            ["configs/x.yaml:8", "freeze.blocks.frist"],
            ["configs/x.yaml:11", "adapters.0.modules_to_save"],
            ["configs/x.yaml:12", "adapters.1.peft_type"],
            ["configs/x.yaml:14", "training.learning_rate"],
            ["configs/x.yaml:13", "training.output_dir"],
            ["configs/x.yaml:17", "metrics.1"],
            ["configs/x.yaml:18", "sharing"],
        ]

    def test_three_mistakes_at_once(self) -> None:
        path = write("modle: {name_or_path: bert}\ndata: {load_dataset: {path: imdb}}\ntraining: {output_dir: 3}\n")
        assert message_of(path) == (
            "configs/x.yaml:1: model: required key is missing; got data, modle, training. "
            "Pretrained model and task. Add it.\n"
            "configs/x.yaml:3: training.output_dir: does not fit TrainingArguments; got 3. There it is text or null.\n"
            f"configs/x.yaml:1: modle: unknown key; got {{'name_or_path': 'bert'}}. Known keys: {TOP}. "
            "Did you mean 'model'?"
        )

    def test_a_key_that_stands_twice_and_a_tag_are_told_with_the_rest(self) -> None:
        path = write(SMALLEST + "freeze: !!python/object:os.system {head: fulll}\nmetrics: []\nmetrics: [f1]\n")
        assert message_of(path) == (
            "configs/x.yaml:4: freeze: has a tag; got 'tag:yaml.org,2002:python/object:os.system'. "
            "A config holds plain data and no objects. Remove the tag.\n"
            "configs/x.yaml:6: metrics: stands twice; got ['f1']. It is at configs/x.yaml:5 too. Keep one of them.\n"
            "configs/x.yaml:4: freeze.head: is none of its values; got 'fulll'. "
            "It takes 'auto', 'frozen' or 'full'. Did you mean 'full'?"
        )


class TestFilesThatAreNoConfigs:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", f"configs/x.yaml: is empty; got no keys. {SECTIONS}"),
            ("# nothing\n---\n", f"configs/x.yaml: is empty; got no keys. {SECTIONS}"),
            ("null\n", f"configs/x.yaml: is empty; got no keys. {SECTIONS}"),
            ("\n- a\n- b\n", f"configs/x.yaml:2: is a list, not a mapping; got ['a', 'b']. {SECTIONS}"),
            ("model\n", f"configs/x.yaml:1: is a single value, not a mapping; got 'model'. {SECTIONS}"),
            (
                "model: [\n",
                (
                    "configs/x.yaml:2:1: is not YAML; got the end of the text. The reader says: "
                    "while parsing a flow node, expected the node content, but found '<stream end>'."
                ),
            ),
        ],
    )
    def test_what_they_hold(self, text: str, message: str) -> None:
        assert message_of(write(text)) == message

    def test_one_that_does_not_exist_names_the_nearest(self) -> None:
        write(SMALLEST, "configs/quickstart.yaml")
        write(SMALLEST, "configs/bert.yml")
        write("", "configs/notes.txt")
        assert message_of("configs/quikstart.yaml") == (
            "config: no such file; got 'configs/quikstart.yaml'. "
            "The folder configs holds bert.yml, quickstart.yaml. Did you mean 'quickstart.yaml'?"
        )

    def test_many_files_are_listed_in_part(self) -> None:
        for number in range(30):
            write("", f"configs/{number:02}.yaml")
        names = ", ".join(f"{number:02}.yaml" for number in range(20))
        assert message_of("configs/none") == (
            f"config: no such file; got 'configs/none'. The folder configs holds {names}, ...."
        )

    @pytest.mark.parametrize(
        ("path", "message"),
        [
            ("nowhere/x.yaml", "no such file; got 'nowhere/x.yaml'. The folder nowhere holds no YAML files."),
            ("configs", "is a folder; got 'configs'. The folder configs holds no YAML files. Name a file."),
            ("/dev/null", "is not a regular file; got '/dev/null'. The folder /dev holds no YAML files."),
            ("a" * 300, f"cannot be read; got '{'a' * 300}'. File name too long."),
        ],
    )
    def test_paths_without_a_config(self, path: str, message: str) -> None:
        assert message_of(path) == f"config: {message}"

    def test_one_of_ten_megabytes_is_refused_unread(self) -> None:
        path = write("")
        os.truncate(path, 10_000_000)
        assert message_of(path) == (
            f"configs/x.yaml: is too large; got 10000000 bytes. A config has at most {LARGEST} bytes. Name a config."
        )

    def test_one_that_is_not_utf_8_is_refused_with_its_line(self) -> None:
        Path("configs/x.yaml").write_bytes(b"model:\n  name_or_path: caf\xe9\n")
        assert message_of("configs/x.yaml") == (
            "configs/x.yaml:2: is not text; got the byte 0xe9. A config is UTF-8. Save it as UTF-8."
        )

    def test_an_alias_bomb_is_refused_before_it_grows(self) -> None:
        lines = ["a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
        lines += [
            f"{this}: &{this} [{', '.join([f'*{last}'] * 9)}]"
            for last, this in zip("abcdefgh", "bcdefghi", strict=True)
        ]
        assert message_of(write("\n".join(lines))) == (
            "configs/x.yaml:5: grows too large; got more than 20000 values, each alias counted as what it repeats. "
            "A config holds fewer. Write them into a file of data."
        )
