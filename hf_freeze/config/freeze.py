"""The `freeze` section of a config: what is frozen."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PlainSerializer, PlainValidator, WithJsonSchema

from hf_freeze.config.section import Section, Texts
from hf_freeze.config.selection import BLOCKS_SCHEMA, Selection, read_blocks, spell_blocks

Blocks = Annotated[
    Selection | dict[str, Selection],
    PlainValidator(read_blocks),
    PlainSerializer(spell_blocks),
    WithJsonSchema(BLOCKS_SCHEMA),
]
Part = Literal["auto", "frozen", "full"]


class FreezeConfig(Section):
    """What is frozen: the selected blocks; blocks that are not selected train in full."""

    embeddings: Part = Field("auto", description="Embeddings: frozen, full, or auto, which is frozen when block 0 is.")
    blocks: Blocks = Field(Selection("none"), description="Blocks that are frozen, in all or for each stack.")
    head: Part = Field("auto", description="Everything after the blocks: frozen, full, or auto, which is full.")
    always_train: Texts = Field(
        (), description="List of globs of parameter names that train whatever else is frozen, such as *.bias."
    )
    keep_dropout: bool = Field(False, description="Whether frozen blocks keep their dropout while training.")
