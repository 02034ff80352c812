"""No message about a config repeats a token, or what stands under a key for credentials."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from hf_freeze.config import load_config, parse_config
from hf_freeze.config.problems import SECRETS, shown
from hf_freeze.errors import ConfigError
from tests.unit.config.smallest import changed

TOKEN = "hf_" + "Secret" * 6


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "x.yaml"
    YAML().dump(changed({}), file)
    return file


def message_of(config: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(config, overrides)
    return str(caught.value)


@pytest.mark.parametrize("secret", [TOKEN, "password"])
def test_the_value_of_a_misspelled_key_for_credentials_is_not_shown(config: Path, secret: str) -> None:
    message = message_of(config, f"training.hub_tokn={secret}")
    assert message.startswith("command line: training.hub_tokn: unknown key; got a value that is not shown. Known keys")
    assert message.endswith(" Did you mean 'hub_token'?")
    assert secret not in message


def test_the_value_of_an_unknown_key_is_shown_without_tokens(config: Path) -> None:
    assert "unknown key; got 'see hf_***, hf_*** and hf_short'. Known" in message_of(
        config, f"training.notes=see {TOKEN}, {TOKEN} and hf_short"
    )


@pytest.mark.parametrize("secret", [TOKEN, "password"])
def test_a_value_of_another_kind_under_a_key_for_credentials_is_not_shown(config: Path, secret: str) -> None:
    assert message_of(config, f"training.hub_token=[{secret}]") == (
        "command line: training.hub_token: does not fit TrainingArguments; got a value that is not shown. There it is "
        "text or null."
    )


@pytest.mark.parametrize("secret", [TOKEN, "password"])
def test_a_section_of_another_kind_is_shown_without_credentials(secret: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(changed({"training": [{"hub_token": secret, "seed": 3}]}))
    assert "got [{'hub_token': '***', 'seed': 3}]" in str(caught.value)


@pytest.mark.parametrize("secret", [TOKEN, "password"])
def test_a_line_that_is_no_yaml_is_shown_without_credentials(tmp_path: Path, secret: str) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(f"training:\n  hub_token: {secret}: more\n")
    message = message_of(file)
    assert "is not YAML; got 'hub_token: ***'." in message
    file.write_text(f"training:\n  hub_token: {secret}\n  hub_token: {secret}\n")
    assert "training.hub_token: stands twice; got a value that is not shown." in message_of(file)


@pytest.mark.parametrize("secret", [TOKEN, "password"])
def test_an_override_that_cannot_be_read_is_shown_without_credentials(config: Path, secret: str) -> None:
    assert "training.hub_token: is not YAML; got a value that is not shown." in message_of(
        config, f"training.hub_token=[{secret}"
    )
    assert "is not key=value; got 'training.hub_token: ***'." in message_of(config, f"training.hub_token: {secret}")


@pytest.mark.parametrize("key", sorted(SECRETS))
def test_what_lies_below_a_key_for_credentials_is_not_shown(key: str) -> None:
    assert shown({"proxies": {"https": "password"}, "other": [{key: "password"}]}) == (
        f"{{'proxies': '***', 'other': [{{{key!r}: '***'}}]}}"
    )
    assert shown("password", ("data", key, "inner")) == "a value that is not shown"


def other_values() -> list[Any]:
    return [
        "token",
        "max_tokens=3",
        "hf_short",
        "hf_freeze_configs",
        ["tokens", 1],
        {"tokenizer": 3},
        ("a", 1),
        None,
        2e-5,
    ]


@pytest.mark.parametrize("value", other_values())
def test_other_values_are_shown_as_they_are(value: Any) -> None:
    assert shown(value) == repr(value)
