"""YAML 1.2 is read as plain data with places, and what is no config is refused while it is read."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_freeze.config import yaml_source
from hf_freeze.config.yaml_source import DEEPEST, MOST_VALUES, Located, read_yaml
from hf_freeze.errors import ConfigError


def plain(text: str) -> Any:
    tree, problems = read_yaml(text, source="x.yaml")
    assert problems == []
    assert tree is not None
    return tree.plain()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2e-5", 2e-5),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("-7", -7),
        ("010", 10),
        ("0o17", 15),
        ("0x1F", 31),
        ("1_000", 1000),
        (".inf", math.inf),
        ("true", True),
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("1:8", "1:8"),
        ("=", "="),
        ("2024-01-01", "2024-01-01"),
        ("'1'", "1"),
        ('"null"', "null"),
        ("~", None),
        ("null", None),
        ("9" * 5000, "9" * 5000),
        ("[1, two, 3.0]", [1, "two", 3.0]),
        ("{a: {1: b}}", {"a": {1: "b"}}),
        ("a: &x [1]\nb: *x", {"a": [1], "b": [1]}),
        ("# a comment\n%YAML 1.2\n---\na: no", {"a": "no"}),
        ("a: |\n  %not a directive\n", {"a": "%not a directive\n"}),
    ],
)
def test_values(text: str, expected: object) -> None:
    value = plain(text)
    assert value == expected
    assert type(value) is type(expected)


def test_an_empty_document_has_no_value() -> None:
    assert read_yaml("# nothing\n", source="x.yaml") == (None, [])


TREE = """a:
  b: 1
  c:
  - x
  - y: 2
d: &d
  e: 3
f: *d
"""


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ((), 1),
        (("a",), 1),
        (("a", "b"), 2),
        (("a", "c"), 3),
        (("a", "c", 0), 4),
        (("a", "c", 1), 5),
        (("a", "c", 1, "y"), 5),
        (("a", "c", 2), 3),
        (("a", "c", 0, "deeper"), 4),
        (("a", "absent"), 1),
        (("absent",), 1),
        (("d", "e"), 7),
        (("f",), 8),
        (("f", "e"), 7),
    ],
)
def test_every_key_knows_its_line(path: tuple[str | int, ...], line: int) -> None:
    tree, _ = read_yaml(TREE, source="x.yaml")
    assert tree is not None
    assert tree.locate(path) == f"x.yaml:{line}"


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("a: 1\nb: 2\na: 3", ["x.yaml:3: a: stands twice; got 3. It is at x.yaml:1 too. Keep one of them."]),
        (
            "a:\n- b: 1\n  b: [2]",
            ["x.yaml:3: a.0.b: stands twice; got [2]. It is at x.yaml:2 too. Keep one of them."],
        ),
        (
            "a: !!python/object/apply:os.system [echo]",
            [
                (
                    "x.yaml:1: a: has a tag; got 'tag:yaml.org,2002:python/object/apply:os.system'. "
                    "A config holds plain data and no objects. Remove the tag."
                )
            ],
        ),
        (
            "a: {b: !!int '3'}",
            [
                (
                    "x.yaml:1: a.b: has a tag; got 'tag:yaml.org,2002:int'. "
                    "A config holds plain data and no objects. Remove the tag."
                )
            ],
        ),
        (
            "a: &a {b: 1}\nc:\n  <<: *a",
            ["x.yaml:3: c: has a merge key; got <<. YAML 1.2 has none. Use extends, or write the keys out."],
        ),
        (
            "true: 1\n? [a]\n: 2",
            [
                "x.yaml:1: config: has a key that is no name; got True. Keys are text or whole numbers.",
                "x.yaml:2: config: has a key that is no name; got ['a']. Keys are text or whole numbers.",
            ],
        ),
    ],
)
def test_keys_and_tags_that_cannot_be_taken_are_told_together(text: str, problems: list[str]) -> None:
    assert read_yaml(text, source="x.yaml")[1] == problems


BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{this}: &{this} [{', '.join([f'*{last}'] * 9)}]\n"
    for last, this in zip("abcdefghijklmnopqr", "bcdefghijklmnopqrs", strict=True)
)
DEEP = f"got more than {DEEPEST} levels of lists and mappings. A config has fewer. Remove some."
MANY = (
    f"got more than {MOST_VALUES} values, each alias counted as what it repeats. A config holds fewer. "
    "Write them into a file of data."
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: b: c", "x.yaml:1:5: is not YAML; got 'a: b: c'. The reader says: mapping values are not allowed here."),
        (
            "a: [1,\n b",
            (
                "x.yaml:2:3: is not YAML; got 'b'. The reader says: while parsing a flow sequence, "
                "expected ',' or ']', but got '<stream end>'."
            ),
        ),
        (
            "a: [\n",
            (
                "x.yaml:2:1: is not YAML; got the end of the text. The reader says: while parsing a flow node, "
                "expected the node content, but found '<stream end>'."
            ),
        ),
        (
            "\ta: 1",
            (
                "x.yaml:1:1: is not YAML; got 'a: 1'. The reader says: while scanning for the next token, "
                "found character '\\t' that cannot start any token."
            ),
        ),
        ("a: 1\nb: \x07", "x.yaml:2: is not YAML; got the character '\\x07'. Remove it."),
        (
            "%YAML 1.1\n---\na: no",
            "x.yaml:1: has a directive; got '%YAML 1.1'. Configs are YAML 1.2. Remove the line.",
        ),
        (
            "%TAG ! tag:x\n---\na: 1",
            "x.yaml:1: has a directive; got '%TAG ! tag:x'. Configs are YAML 1.2. Remove the line.",
        ),
        ("a: 1\n---\nb: 2", "x.yaml:3: holds a second document; got ---. A config is one document. Remove it."),
        *(
            (
                f'a: 1\nb: "{escape}"',
                "x.yaml:2: is not YAML; got an escape for a character that does not exist. Escapes end at \\U0010FFFF.",
            )
            for escape in ("\\U00110000", "\\UFFFFFFFF")
        ),
        ("a: *b", "x.yaml:1: has an alias to nothing; got *b. Write &b before it."),
        ("a: &a {b: *a}", "x.yaml:1: has an alias to nothing; got *a. Write &a before it."),
        (BOMB, f"x.yaml:5: grows too large; {MANY}"),
        ("[" * 5_000, f"x.yaml:1: is too deep; {DEEP}"),
        (
            f"a: &a {'[' * 40}{']' * 40}\nb: {'[' * 40}*a{']' * 40}",
            f"x.yaml:2: is too deep; {DEEP}",
        ),
    ],
    ids=range(15),
)
def test_what_is_no_config_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_yaml(text, source="x.yaml")
    assert str(caught.value) == message


def test_many_values_without_an_alias_are_refused_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yaml_source, "MOST_VALUES", 10)
    assert plain("- 1\n" * 9) == [1] * 9
    with pytest.raises(ConfigError) as caught:
        plain("- 1\n" * 10)
    assert str(caught.value) == f"x.yaml:10: grows too large; {MANY.replace(str(MOST_VALUES), '10')}"


@given(st.text(alphabet=st.sampled_from("ab:-?[]{},&*!|>'\"%@#\n\t 01~<="), max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    tree, problems = None, []
    try:
        tree, problems = read_yaml(text, source="x.yaml")
    except ConfigError as error:
        problems = [str(error)]
    assert tree is None or isinstance(tree, Located)
    assert all(problem.startswith("x.yaml:") for problem in problems)
