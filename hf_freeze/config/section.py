"""What the sections of a config are made of: the base class that reports problems together, and the kinds of values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    ModelWrapValidatorHandler,
    PlainValidator,
    Strict,
    StringConstraints,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from hf_freeze.config.problems import Problem, ProblemsFound, listed, problems_of, shown, unknown_key
from hf_freeze.config.sizes import SIZE_SCHEMA, read_size
from hf_freeze.errors import did_you_mean

Switch = Annotated[
    Literal["auto"] | bool,
    PlainValidator(lambda given: _switch(given)),  # Literal["auto", True, False] would take 1 for true
    WithJsonSchema({"enum": ["auto", True, False]}),
]
Size = Annotated[int, PlainValidator(read_size), WithJsonSchema(SIZE_SCHEMA)]
Text = Annotated[str, StringConstraints(min_length=1)]
Texts = Annotated[tuple[Text, ...], Strict(False)]  # YAML has lists, not tuples


class Section(BaseModel):
    """A part of a config whose problems are reported together, those of the keys that pass through included."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @classmethod
    def problems_upstream(cls, given: Mapping[str, Any]) -> list[Problem]:
        """Returns what is wrong with the keys that pass through to another library.

        Args:
            given: The whole section as it was written.
        """
        return []

    @model_validator(mode="wrap")
    @classmethod
    def _report_together(cls, given: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if isinstance(given, cls):
            return given
        given = dict(given) if isinstance(given, Mapping) else given
        found: list[Problem] = []
        try:
            section = handler(given)
        except ValidationError as error:
            found = problems_of(error, cls.model_fields)
        if isinstance(given, dict):
            found += cls.problems_upstream({key: value for key, value in given.items() if isinstance(key, str)})
        if found:
            raise ProblemsFound(found)
        return section


_Options = TypeVar("_Options", bound=Section)


def read_options(
    declared: type[_Options], given: Mapping[str, Any], *, among: Mapping[str, type[Section]], key: str
) -> _Options:
    """Reads the options of one of several things that a key chooses from, such as those of a schedule.

    Args:
        declared: The options that it has.
        given: What was written beside the key.
        among: The options of all of them by name, to say whose an option is that this one does not have.
        key: The key.

    Raises:
        ProblemsFound: An option is unknown, or has a value that it cannot have; all are listed.
    """
    known = declared.model_fields
    found = []
    for name in given.keys() - known.keys():
        owners = [owner for owner, other in among.items() if name in other.model_fields]
        problem = unknown_key((name,), given[name], [key, *known])
        text = f"{problem.text} It is an option of {listed(owners)}." if owners else problem.text
        found.append(Problem(problem.path, text))
    try:
        read = declared.model_validate({name: value for name, value in given.items() if name in known})
    except ValidationError as error:
        raise ProblemsFound([*found, *problems_of(error, known)]) from None
    if found:
        raise ProblemsFound(found)
    return read


def _switch(given: object) -> Literal["auto"] | bool:
    if given == "auto":
        return "auto"
    if isinstance(given, bool):
        return given
    meant = did_you_mean(given, ["auto", "false", "true"]) if isinstance(given, str) else ""
    hint = " Write it without quotes." if given in ("false", "true") else meant
    text = f"is none of its values; got {shown(given)}. It takes 'auto', true or false.{hint}"
    raise ProblemsFound([Problem((), text)])
