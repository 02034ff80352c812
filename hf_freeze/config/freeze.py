"""The `freeze` section of a config: what is frozen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, PlainSerializer, PlainValidator, WithJsonSchema

from hf_freeze.config.automatic import AUTOMATIC_SCHEMA, AutomaticSelection, read_automatic
from hf_freeze.config.problems import Problem, ProblemsFound, listed, unknown_key
from hf_freeze.config.section import Section, Texts
from hf_freeze.config.selection import AUTO, BLOCKS_SCHEMA, SELECTORS, Selection, read_blocks, spell_blocks
from hf_freeze.errors import nearest

Blocks = Annotated[
    Selection | dict[str, Selection],
    PlainValidator(read_blocks),
    PlainSerializer(spell_blocks),
    WithJsonSchema(BLOCKS_SCHEMA),
]


def _read_frozen(given: Any) -> Selection | dict[str, Selection] | AutomaticSelection:
    if isinstance(given, AutomaticSelection):
        return given
    if not isinstance(given, Mapping):
        return read_blocks(given)
    unknown = [key for key in given if isinstance(key, str) and nearest(key, (*SELECTORS, AUTO)) == AUTO != key]
    if unknown:
        raise ProblemsFound([unknown_key((key,), given[key], (*SELECTORS, AUTO)) for key in unknown])
    if AUTO not in given:
        return read_blocks(given)
    if len(given) > 1:
        text = f"has {len(given)} selectors; got {listed(given)}. auto chooses by itself. Keep one of them."
        raise ProblemsFound([Problem((), text)])
    try:
        return read_automatic(given[AUTO])
    except ProblemsFound as error:
        raise ProblemsFound([problem.under((AUTO,)) for problem in error.problems]) from None


def _spell_frozen(blocks: Selection | Mapping[str, Selection] | AutomaticSelection) -> Any:
    return blocks.spelling if isinstance(blocks, AutomaticSelection) else spell_blocks(blocks)


FrozenBlocks = Annotated[
    Selection | dict[str, Selection] | AutomaticSelection,
    PlainValidator(_read_frozen),
    PlainSerializer(_spell_frozen),
    WithJsonSchema({"oneOf": [*BLOCKS_SCHEMA["oneOf"], AUTOMATIC_SCHEMA]}),
]
Part = Literal["auto", "frozen", "full"]


class FreezeConfig(Section):
    """What is frozen: the selected blocks; blocks that are not selected train in full."""

    embeddings: Part = Field("auto", description="Embeddings: frozen, full, or auto, which is frozen when block 0 is.")
    blocks: FrozenBlocks = Field(
        Selection("none"), description="Blocks that are frozen, in all or for each stack, or how they are chosen."
    )
    head: Part = Field("auto", description="Everything after the blocks: frozen, full, or auto, which is full.")
    always_train: Texts = Field(
        (), description="List of globs of parameter names that train whatever else is frozen, such as *.bias."
    )
    keep_dropout: bool = Field(False, description="Whether frozen blocks keep their dropout while training.")

    @property
    def automatic(self) -> AutomaticSelection | None:
        """How the blocks are chosen before training; None where the section says which."""
        return self.blocks if isinstance(self.blocks, AutomaticSelection) else None

    @property
    def undecided(self) -> FreezeConfig:
        """The section as it stands before blocks are chosen: none of them is frozen."""
        return self if self.automatic is None else self.model_copy(update={"blocks": Selection("none")})
