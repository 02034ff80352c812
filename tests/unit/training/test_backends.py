"""What the plan asks of FSDP and DeepSpeed: original parameters, one unit per block, and a plan that stays."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

from hf_freeze.errors import PlanError
from hf_freeze.plan import freeze_model, plan_of
from hf_freeze.training.backends import check_backend, shard_by_block
from tests.tiny import tiny_bert, tiny_t5
from tests.unit.training.runs import arguments

LORA = {"peft_type": "LORA", "target_modules": ["query"], "blocks": {"last": 2}}


def fsdp(**options: object) -> SimpleNamespace:
    """The state that accelerate has under FSDP, which it switches off on the CPU."""
    plugin = FullyShardedDataParallelPlugin(cpu_ram_efficient_loading=False, **options)
    return SimpleNamespace(distributed_type=DistributedType.FSDP, fsdp_plugin=plugin)


class TestFsdp1:
    def test_without_original_parameters_it_is_refused(self, tmp_path: Path) -> None:
        model = freeze_model(tiny_bert(), {"blocks": {"first": 2}})
        message = (
            "fsdp_use_orig_params: FSDP version 1 flattens frozen and trainable parameters into one without it; got "
            "False. Set it to true in the accelerate config, or use fsdp_version: 2."
        )
        with pytest.raises(PlanError, match=f"^{re.escape(message)}$"):
            check_backend(arguments(tmp_path), fsdp(fsdp_version=1, use_orig_params=False), plan_of(model))

    @pytest.mark.parametrize("freeze", [None, {"blocks": {"first": 2}}])
    def test_with_original_parameters_it_is_allowed(self, tmp_path: Path, freeze: dict[str, object] | None) -> None:
        model = freeze_model(tiny_bert(), freeze)
        check_backend(arguments(tmp_path), fsdp(fsdp_version=1, use_orig_params=True), plan_of(model))

    def test_with_nothing_frozen_it_is_allowed(self, tmp_path: Path) -> None:
        state = fsdp(fsdp_version=1, use_orig_params=False)
        check_backend(arguments(tmp_path), state, plan_of(freeze_model(tiny_bert())))


class TestShardedCheckpoints:
    """Of a model with adapters, accelerate writes the adapters alone to shards, and nothing under FSDP version 1."""

    def check(self, folder: Path, adapters: list[dict[str, object]], *, save: str = "steps", **options: object) -> None:
        model = freeze_model(tiny_bert(), {"blocks": {"first": 2}}, adapters)
        check_backend(arguments(folder, save_strategy=save), fsdp(use_orig_params=True, **options), plan_of(model))

    @pytest.mark.parametrize("version", [1, 2])
    def test_they_are_refused_where_they_lack_what_trains(self, tmp_path: Path, version: int) -> None:
        message = (
            "fsdp_state_dict_type: sharded checkpoints of a model with adapters lack weights that train, and resuming "
            "would lose them; got SHARDED_STATE_DICT. Set it to FULL_STATE_DICT in the accelerate config, or "
            "training.save_strategy to 'no'."
        )
        with pytest.raises(PlanError, match=f"^{re.escape(message)}$"):
            self.check(tmp_path, [LORA], fsdp_version=version, state_dict_type="SHARDED_STATE_DICT")

    @pytest.mark.parametrize("version", [1, 2])
    def test_they_are_allowed_elsewhere(self, tmp_path: Path, version: int) -> None:
        self.check(tmp_path, [], fsdp_version=version, state_dict_type="SHARDED_STATE_DICT")
        self.check(tmp_path, [LORA], fsdp_version=version, state_dict_type="FULL_STATE_DICT")
        self.check(tmp_path, [LORA], save="no", fsdp_version=version, state_dict_type="SHARDED_STATE_DICT")


class TestSchedules:
    """What trains is noted once by FSDP1 and DeepSpeed, and may change under all others."""

    @pytest.mark.parametrize(
        ("state", "backend"),
        [
            (fsdp(fsdp_version=1, use_orig_params=True), "FSDP version 1"),
            (SimpleNamespace(distributed_type=DistributedType.DEEPSPEED), "DeepSpeed"),
        ],
        ids=["FSDP1", "DeepSpeed"],
    )
    def test_they_are_refused_where_what_trains_is_noted_once(
        self, tmp_path: Path, state: SimpleNamespace, backend: str
    ) -> None:
        plan = plan_of(freeze_model(tiny_bert(), {"blocks": {"first": 2}}))
        message = (
            f"schedule: {backend} cannot follow a freeze state that changes; got a schedule other than static. It "
            "notes once which parameters train. Use one process, DDP or fsdp_version: 2, or set schedule.type to "
            "static."
        )
        with pytest.raises(PlanError, match=f"^{re.escape(message)}$"):
            check_backend(arguments(tmp_path), state, plan, changes=True)
        check_backend(arguments(tmp_path), state, plan)

    def test_they_are_allowed_elsewhere(self, tmp_path: Path) -> None:
        plan = plan_of(freeze_model(tiny_bert()))
        for state in (fsdp(fsdp_version=2), SimpleNamespace(distributed_type=DistributedType.MULTI_GPU)):
            check_backend(arguments(tmp_path), state, plan, changes=True)

    def test_noise_on_embeddings_that_may_freeze_is_refused(self, tmp_path: Path) -> None:
        plan = plan_of(freeze_model(tiny_bert()))
        state = SimpleNamespace(distributed_type=DistributedType.NO)
        with pytest.raises(PlanError, match=r"^training\.neftune_noise_alpha: frozen embeddings stay in eval mode"):
            check_backend(arguments(tmp_path, neftune_noise_alpha=5.0), state, plan, changes=True)


class TestUnits:
    """Without a word from the user, a block is a unit; BERT by itself names its embeddings as one as well."""

    def test_a_unit_is_a_block(self) -> None:
        model, state = freeze_model(tiny_bert()), fsdp(fsdp_version=2)
        assert set(model._no_split_modules) == {"BertEmbeddings", "BertLayer"}
        shard_by_block(state, model, plan_of(model))
        assert state.fsdp_plugin.transformer_cls_names_to_wrap == ["BertLayer"]

    def test_blocks_of_all_stacks_count(self) -> None:
        model, state = freeze_model(tiny_t5()), fsdp(fsdp_version=2)
        shard_by_block(state, model, plan_of(model))
        assert state.fsdp_plugin.transformer_cls_names_to_wrap == ["T5Block"]

    def test_what_the_user_names_is_kept(self) -> None:
        model = freeze_model(tiny_bert())
        state = fsdp(fsdp_version=2, transformer_cls_names_to_wrap=["BertAttention"])
        shard_by_block(state, model, plan_of(model))
        assert state.fsdp_plugin.transformer_cls_names_to_wrap == ["BertAttention"]
