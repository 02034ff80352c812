from __future__ import annotations

from typing import Any

import pytest

from hf_freeze.plan import find_layout, freeze_model, plan_of
from hf_freeze.plan.optimizer import LearningRateMultipliers, role_multipliers
from hf_freeze.plan.table import LayoutRow, PlanRow, PlanTable, layout_table, plan_table
from tests.tiny import tiny_bart, tiny_bert, tiny_gpt2, tiny_t5

LORA = {"peft_type": "LORA", "target_modules": "all-linear", "r": 2}


def table(model: Any, freeze: Any = None, adapters: Any = (), **multipliers: float) -> PlanTable:
    plan = plan_of(freeze_model(model, freeze, adapters))
    return plan_table(plan, role_multipliers(plan.layout, LearningRateMultipliers(**multipliers)))


def test_blocks_that_are_treated_alike_share_a_row() -> None:
    # Word, position and type embeddings and a LayerNorm; a block; pooler and classifier.
    embeddings, block, head = (99 + 64 + 2 + 2) * 32, 4 * (32 * 32 + 32) + 2 * 32 * 64 + 64 + 32 + 4 * 32, 33 * 34
    assert table(tiny_bert(), {"blocks": {"first": 3}}).rows == (
        PlanRow("embeddings", embeddings, 0, "frozen", None),
        PlanRow("blocks[0-2]", 3 * block, 0, "frozen", None),
        PlanRow("blocks[3]", block, block, "full", 1.0),
        PlanRow("head", head, head, "full", 1.0),
    )


def test_totals_are_those_of_the_model() -> None:
    model = tiny_bert()
    shown = table(model, {"blocks": {"indices": [1]}})
    assert shown.num_parameters == sum(parameter.numel() for parameter in model.parameters())
    assert shown.num_trainable == sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def test_parameters_of_adapters_are_counted() -> None:
    plain, adapted = table(tiny_bert()), table(tiny_bert(), None, [{**LORA, "blocks": {"last": 1}}])
    added = 2 * (4 * (32 + 32) + 2 * (32 + 64))
    assert adapted.num_parameters == plain.num_parameters + added
    assert adapted.rows[2].num_trainable == added
    assert [row.treatment for row in adapted.rows] == ["frozen", "frozen", "adapter", "full"]


def test_blocks_with_different_learning_rates_have_a_row_each() -> None:
    shown = table(tiny_bert(), {"blocks": {"first": 2}}, block_decay=0.5, head=2.0)
    assert [(row.roles, row.lr_multiplier) for row in shown.rows] == [
        ("embeddings", None),
        ("blocks[0-1]", None),
        ("blocks[2]", 0.25),
        ("blocks[3]", 0.5),
        ("head", 2.0),
    ]


def test_rows_are_not_shared_across_stacks() -> None:
    shown = table(tiny_bart(), {"blocks": {"encoder": "all"}})
    assert [row.roles for row in shown.rows] == ["embeddings", "encoder.blocks[0-3]", "decoder.blocks[0-3]", "head"]


@pytest.mark.parametrize(
    ("freeze", "adapters", "sentence"),
    [
        (None, (), "The backward pass runs through the whole model: parameters of the embeddings train."),
        (
            {"blocks": {"first": 2}},
            (),
            "The backward pass stops in blocks[2]; the frozen prefix before it holds the embeddings and 2 blocks.",
        ),
        (
            {"blocks": {"first": 1}},
            (),
            "The backward pass stops in blocks[1]; the frozen prefix before it holds the embeddings and 1 block.",
        ),
        (
            None,
            [LORA],
            "The backward pass stops in blocks[0]; the frozen prefix before it holds the embeddings alone.",
        ),
        (
            {"blocks": "all"},
            (),
            "The backward pass stops in head; the frozen prefix before it holds the embeddings and 4 blocks.",
        ),
    ],
)
def test_the_table_says_where_the_backward_pass_stops(freeze: Any, adapters: Any, sentence: str) -> None:
    shown = table(tiny_bert(), freeze, adapters)
    assert (shown.backward, shown.notes) == (sentence, ())


def test_parameters_that_always_train_are_said_to_end_the_prefix() -> None:
    shown = table(tiny_bert(), {"blocks": {"first": 3}, "always_train": ["*.layer.1.*.bias"]})
    assert shown.backward == (
        "The backward pass stops in blocks[1]; the frozen prefix before it holds the embeddings and 1 block."
    )
    assert shown.notes == (
        (
            "freeze.always_train ends the frozen prefix in blocks[1], where "
            "bert.encoder.layer.1.attention.self.query.bias trains; without it, the prefix would reach to blocks[2]."
        ),
    )


def test_a_layout_shows_where_each_role_is() -> None:
    """Block 0 of a T5 has a row of its own: it alone holds relative positions."""
    rows = layout_table(find_layout(tiny_t5())).rows
    assert [(row.roles, row.modules) for row in rows[1:5]] == [
        ("encoder.blocks[0]", ("encoder.block[0]",)),
        ("encoder.blocks[1-3]", ("encoder.block[1-3]",)),
        ("decoder.blocks[0]", ("decoder.block[0]",)),
        ("decoder.blocks[1-3]", ("decoder.block[1-3]",)),
    ]
    assert (rows[0].roles, rows[0].modules[0]) == ("embeddings", "shared")
    assert (rows[-1].roles, rows[-1].modules[-1]) == ("head", "lm_head")


def test_a_layout_counts_every_parameter_once() -> None:
    model = tiny_gpt2()
    rows = layout_table(find_layout(model)).rows
    assert sum(row.num_parameters for row in rows) == sum(parameter.numel() for parameter in model.parameters())
    assert all(isinstance(row, LayoutRow) for row in rows)


def test_a_layout_names_tied_weights() -> None:
    assert layout_table(find_layout(tiny_gpt2())).notes == ("Tied: transformer.wte.weight = lm_head.weight.",)


def test_a_layout_names_weights_that_the_model_keeps_constant() -> None:
    model = tiny_bert()
    constants = frozenset({"bert.embeddings.position_embeddings.weight", "bert.pooler.dense.bias"})
    notes = layout_table(find_layout(model, constants=constants)).notes
    assert notes == ("Kept constant by the model: bert.embeddings.position_embeddings.weight and 1 more.",)
