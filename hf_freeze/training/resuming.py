"""The part of the trainer that saves and resumes, over private methods of `Trainer` where it has no public seam.

- `_save_checkpoint`, `_save`: write what can change, and declare the checkpoint complete last.
- `_save_optimizer_and_scheduler`: what the manifest has digests of needs no checksums.
- `_load_from_checkpoint`, `_load_best_model`: the Trainer loads files by their names on disk, which differ from those
  in memory for models that are converted on load; it then loads nothing and only warns.
- `_load_optimizer_and_scheduler`: a changed plan has other parameter groups; under FSDP version 1, accelerate 1.15
  reads from shards only what the optimizer has a place for, which is nothing before its first step.
- `_finalize_training`: a killed removal of a checkpoint must leave nothing that could be resumed from.
"""

from __future__ import annotations

import dataclasses
import logging
import warnings
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate.utils import broadcast_object_list
from peft import PeftModel
from torch import nn
from torch.distributed.checkpoint.state_dict import _init_optim_state
from transformers import PreTrainedModel
from transformers.trainer import OPTIMIZER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import CONFIG_NAME

from hf_freeze.config import SaveConfig
from hf_freeze.errors import PlanError
from hf_freeze.plan.apply import apply_plan
from hf_freeze.plan.wrappers import unwrap_model
from hf_freeze.training import checkpoint, foreign, manifest, rotation
from hf_freeze.training.callbacks import AuditCallback
from hf_freeze.training.pushing import PushingMixin
from hf_freeze.training.record import remove_models, training_record, write_record
from hf_freeze.training.saving import digest_of_frozen, save_adapted, save_delta
from hf_freeze.training.scheduling import SchedulingMixin

logger = logging.getLogger(__name__)


class CheckpointMixin(PushingMixin, SchedulingMixin):
    """Saves what can change, and resumes from complete checkpoints only."""

    # The Trainer declares them as optional: they are None before the Trainer has made them.
    lr_scheduler: Any
    optimizer: Any

    audit: AuditCallback
    resumed_folder: Path | None = None
    _allow_changed_plan: bool
    _save_section: SaveConfig
    _base_revision: str | None
    _blocks_path: str | None
    _manifest: manifest.ManifestWriter | None = None  # While a checkpoint is written.

    def train(self, resume_from_checkpoint: str | bool | None = None, *positional: Any, **keywords: Any) -> Any:
        """Trains as the Trainer does; True resumes from the newest complete checkpoint.

        Args:
            resume_from_checkpoint: A checkpoint folder, or True for the newest complete one of the run that was started
                last in the output folder.
            positional: As for the Trainer.
            keywords: As for the Trainer.

        Raises:
            PlanError: There is no complete checkpoint, its weights are pickled, its plan differs, or its base model; or
                the output folder holds checkpoints of another plan, which `save_total_limit` or
                `load_best_model_at_end` would take for those of this run.
        """
        folder: str | None = None
        if resume_from_checkpoint:
            found = self._resumable(resume_from_checkpoint)
            if not self._allow_changed_plan:
                self._check_same_plan(found)
            folder = str(found)
        self.resumed_folder = None if folder is None else Path(folder)
        self._keep_apart()
        self._finish_current_push()
        if self.args.should_save:
            rotation.remove_leftovers(Path(str(self.args.output_dir)))
        return super().train(folder, *positional, **keywords)

    def _check_same_plan(self, folder: Path) -> None:
        """Refuses a checkpoint of another plan; that of the plain Trainer tells no more than what it optimised."""
        if (folder / checkpoint.STATE_FILE).exists():
            checkpoint.check_plan(self.base_plan, folder, self._schedule_asked)
            return
        if self._is_sharded:
            return
        made, held = self.optimizer, foreign.group_sizes(folder)
        current = _group_sizes(self.create_optimizer())
        self.optimizer = made
        if held != current:
            raise PlanError(
                f"{folder}: this checkpoint was written under another plan; got an optimizer with "
                f"{_spelled(held)}. Under this plan it has {_spelled(current)}. Restore the plan of that run, or set "
                "allow_changed_plan to true (the weights are kept, the optimizer starts anew)."
            )

    def _keep_apart(self) -> None:
        """Refuses an output folder with checkpoints of another run, or removes them where `save.overwrite` says so.

        As with the Trainer, a folder may be used again, but not where checkpoints of another plan would be rotated
        away, or be loaded where one of them is taken for the best.
        """
        run = Path(str(self.args.output_dir))
        goes_on = self.resumed_folder is not None and self.resumed_folder.resolve().parent == run.resolve()
        touches_others = bool(self.args.save_total_limit) or self.args.load_best_model_at_end
        if goes_on or not (touches_others or self._save_section.overwrite):
            return
        folders = sorted(run.glob(f"{PREFIX_CHECKPOINT_DIR}-*"))
        # What the first process sees counts for all: others may have disks of their own.
        (others,) = broadcast_object_list([[folder.name for folder in folders if self._is_of_another_run(folder)]])
        if others and not self._save_section.overwrite:
            raise PlanError(
                f"args.output_dir: this folder holds checkpoints of another run; got {str(run)!r} with "
                f"{', '.join(others[:3])}. save_total_limit and load_best_model_at_end would take them for those of "
                "this run. Name another folder, resume that run under its plan with resume_from_checkpoint=True, or "
                "remove them with save={'overwrite': True}."
            )
        if self.args.should_save:
            for name in others:
                rotation.remove_checkpoint(run / name)

    def _is_of_another_run(self, folder: Path) -> bool:
        """Returns whether a checkpoint is one of another plan, or of another trainer; one that was cut short is not."""
        if not (folder / checkpoint.STATE_FILE).exists():
            return (folder / TRAINER_STATE_NAME).exists()
        if not manifest.is_intact(folder, checkpoint.STATE_FILE) or self._is_same_plan(folder):
            return False
        recorded, chosen = checkpoint.read_chosen(folder), self.base_plan.chosen
        # The same request may have chosen another plan.
        return recorded is None or chosen is None or recorded.asked != chosen.asked

    def _resumable(self, asked: str | bool) -> Path:
        if asked is True:
            run = Path(str(self.args.output_dir))
            found = manifest.newest_complete(run)
            if found is None:
                self._refuse_to_resume(run)
            return found
        folder = Path(str(asked))
        checkpoint.refuse_pickled_weights(folder)
        wrong = self._incomplete_files(folder)
        if wrong or not folder.is_dir():
            newest = manifest.newest_complete(folder.parent) or next(manifest.complete_checkpoints(folder.parent), None)
            without = f", in which these files are missing or damaged: {', '.join(wrong)}" if folder.is_dir() else ""
            what = "this checkpoint is not complete" if folder.is_dir() else "there is no such folder"
            none = "There is no complete one beside it. Train without resume_from_checkpoint."
            remedy = none if newest is None else f"The newest complete one is {newest}. Resume from that one."
            raise PlanError(f"resume_from_checkpoint: {what}; got {str(asked)!r}{without}. {remedy}")
        return folder

    def _refuse_to_resume(self, run: Path) -> NoReturn:
        """Says why there is nothing to resume from in the folder of a run, and what is there."""
        earlier = [folder.name for folder in manifest.complete_checkpoints(run)]
        if earlier:
            raise PlanError(
                "resume_from_checkpoint: the run that was started last has no complete checkpoint; got the folder "
                f"{str(run)!r}, in which these are of an earlier run: {', '.join(earlier[:3])}. Name one of them to "
                "resume from it, or train without resume_from_checkpoint."
            )
        for folder in sorted(run.glob(f"{PREFIX_CHECKPOINT_DIR}-*")):
            checkpoint.refuse_pickled_weights(folder)
        raise PlanError(
            f"resume_from_checkpoint: no complete checkpoint to resume from; got the folder {str(run)!r}. A complete "
            f"checkpoint holds {manifest.MANIFEST_FILE}. Train without resume_from_checkpoint, or name a checkpoint "
            "folder."
        )

    def _incomplete_files(self, folder: Path) -> list[str]:
        """Returns the names of the files that are missing in a checkpoint or damaged."""
        ours = (checkpoint.STATE_FILE, checkpoint.WEIGHTS_FILE, manifest.MANIFEST_FILE)
        if any((folder / name).exists() for name in ours):
            found = {*manifest.damaged_files(folder)}
            return sorted(found if (folder / TRAINER_STATE_NAME).is_file() else {*found, TRAINER_STATE_NAME})
        if self._is_sharded:
            return [] if (folder / TRAINER_STATE_NAME).is_file() else [TRAINER_STATE_NAME]
        inner = unwrap_model(self.model)
        kind = {"is_adapted": isinstance(inner, PeftModel), "has_config": isinstance(inner, PreTrainedModel)}
        return sorted(foreign.unsound_files(folder, **kind))

    @property
    def _schedule_record(self) -> dict[str, Any] | None:
        """The schedule and where it stands, as plain data; None where nothing is scheduled."""
        return None if self._controller is None else self._controller.record

    @property
    def _schedule_asked(self) -> dict[str, Any] | None:
        """The schedule as the config asks for it; None where nothing is scheduled."""
        if self.scheduled is None:
            return None
        return {"type": self.scheduled.section.type, "options": self.scheduled.section.options}

    @property
    def _is_sharded(self) -> bool:
        """Whether weights are sharded over processes: FSDP and DeepSpeed checkpoints keep upstream's format."""
        return bool(self.is_fsdp_enabled or self.is_deepspeed_enabled)

    @property
    def _checkpoints_are_small(self) -> bool:
        return self._save_section.checkpoints == "small" and not self._is_sharded

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        run = Path(self._get_output_dir(trial=trial))
        folder = run / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self._controller is not None:
            self._controller.check_state()
        if self.args.should_save:
            self._clear(folder)
        self.accelerator.wait_for_everyone()
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        with manifest.ManifestWriter(folder) as writer:
            self._manifest = writer
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._manifest = None
                self.args.save_total_limit = limit
            self.accelerator.wait_for_everyone()
            gathered = {} if self._controller is None else self._controller.tensors()
            if self.args.should_save:
                checkpoint.write_schedule_tensors(gathered, folder)
                writer.write()
        self._push_complete_checkpoint(folder)
        if self.args.should_save:
            rotation.rotate(folder, limit, best=self.state.best_model_checkpoint)

    def _clear(self, folder: Path) -> None:
        """Makes place for a checkpoint, and marks it as one of hf_freeze: without a manifest, it is incomplete."""
        rotation.remove_checkpoint(folder)  # What a killed save left behind, or another run.
        if not self._checkpoints_are_small:
            folder.mkdir(parents=True, exist_ok=True)
            trained = self.trained_plan.trainable_names
            checkpoint.write_plan(self.base_plan, folder, {}, trained=trained, schedule=self._schedule_record)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        folder = Path(str(output_dir if output_dir is not None else self.args.output_dir))
        if self._manifest is None:
            self._save_final(folder, state_dict)
        elif not self._checkpoints_are_small:
            self._save_whole(folder, state_dict)
        elif self.args.should_save:
            checkpoint.write_state(
                self.model,
                self.base_plan,
                folder,
                self.audit.digests,
                union=self.union_plan,
                trained=self.trained_plan.trainable_names,
                schedule=self._schedule_record,
            )
            self._manifest.add(folder / checkpoint.WEIGHTS_FILE)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self._manifest is None or not self._checkpoints_are_small:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        # PyTorch never compares the checksums that it writes, and the manifest has digests.
        with_checksums = torch.serialization.get_crc32_options()
        torch.serialization.set_crc32_options(False)
        try:
            super()._save_optimizer_and_scheduler(output_dir)
        finally:
            torch.serialization.set_crc32_options(with_checksums)
        if self.args.should_save:
            self._manifest.add(Path(output_dir) / OPTIMIZER_NAME)

    def _save_final(self, folder: Path, state_dict: dict[str, Any] | None) -> None:
        if not self.args.should_save:
            self._save_whole(folder, state_dict)  # With shards, every process has a part in it.
            return
        inner = unwrap_model(self.model)
        base = inner.get_base_model() if isinstance(inner, PeftModel) else inner
        # An earlier model would be loaded in the place of this one, or together with it.
        is_adapted = base is not inner and isinstance(base, PreTrainedModel)
        remove_models(folder, base=str(base.name_or_path or "") if is_adapted else "")
        if not isinstance(base, PreTrainedModel):
            self._save_whole(folder, state_dict)
            return
        trained = self.trained_plan
        record = training_record(base, trained, revision=self._base_revision, blocks_path=self._blocks_path)
        plain = inner if isinstance(inner, PreTrainedModel) and self._save_section.format == "delta" else None
        if plain is not None and save_delta(plain, trained, folder, record=record, state_dict=state_dict):
            self._save_processor(folder)
            return
        self._save_whole(folder, state_dict)
        if isinstance(inner, PeftModel):
            known = {} if self._is_sharded else self.audit.digests
            digest, undigested = digest_of_frozen(inner, trained, folder, known, state_dict=state_dict)
            record = dataclasses.replace(record, frozen_digest=digest, undigested=undigested)
        write_record(record, folder)

    def _save_whole(self, folder: Path, state_dict: dict[str, Any] | None) -> None:
        inner = unwrap_model(self.model)
        if not isinstance(inner, PeftModel):
            super()._save(str(folder), state_dict)
            # The pickled arguments that the Trainer adds are never read, and nobody should have to trust them.
            (folder / "training_args.bin").unlink(missing_ok=True)
        elif self.args.should_save:
            folder.mkdir(parents=True, exist_ok=True)
            save_adapted(inner, self.trained_plan, folder, state_dict=state_dict)
            self._save_processor(folder)

    def _save_processor(self, folder: Path) -> None:
        if self.processing_class is not None:
            self.processing_class.save_pretrained(str(folder))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self._trained_before = checkpoint.read_trained(Path(resume_from_checkpoint))
        if not self._load_weights(Path(resume_from_checkpoint)):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        self.audit.release({*self.union_plan.trainable_names, *self._trained_before})
        try:
            if not self._load_weights(Path(self.state.best_model_checkpoint or "")):
                super()._load_best_model()
        except PlanError as error:  # It may be of an earlier plan, under which other weights were frozen.
            logger.warning("The best checkpoint is not loaded, and the last weights are kept. %s", error)
        apply_plan(self.model, self.plan)  # PEFT freezes the adapters that it loads.

    def _load_weights(self, folder: Path) -> bool:
        """Loads the weights of a checkpoint, and returns whether it has a format that is read here."""
        inner = unwrap_model(self.model)
        if self._is_sharded:
            return False
        if (folder / checkpoint.WEIGHTS_FILE).exists():
            checkpoint.read_state(self.model, self.plan, folder)
            return True
        if (folder / CONFIG_NAME).exists() and isinstance(inner, PreTrainedModel):
            checkpoint.read_whole(inner, folder)
            return True
        return False

    def _finalize_training(self, trial: Any, *positional: Any, **keywords: Any) -> Any:
        best, limit = self.state.best_model_checkpoint, self.args.save_total_limit
        if self.args.should_save and best is not None and limit == 1:
            rotation.keep_only(Path(self._get_output_dir(trial=trial)), best)  # or the Trainer would, less safely
        finalize: Any = super()._finalize_training  # It has no annotations upstream.
        return finalize(trial, *positional, **keywords)

    def _is_same_plan(self, folder: Path) -> bool:
        return checkpoint.same_plan(folder, self.base_plan, self._schedule_asked)

    def _has_its_optimizer(self, folder: Path) -> bool:
        if (folder / checkpoint.STATE_FILE).exists():
            return self._is_same_plan(folder)
        return self._is_sharded or foreign.group_sizes(folder) == _group_sizes(self.optimizer)

    def _load_optimizer_and_scheduler(self, checkpoint_folder: str | None) -> None:
        folder = Path(checkpoint_folder) if checkpoint_folder is not None else None
        if folder is None or self._has_its_optimizer(folder):
            if folder is not None and self.is_fsdp_enabled and not self.accelerator.is_fsdp2:
                _init_optim_state(self.optimizer.optimizer)  # Inside accelerate's, which may skip steps.
            super()._load_optimizer_and_scheduler(checkpoint_folder)
            return
        logger.warning("The plan changed since %s was written: the optimizer starts anew.", folder)
        self.lr_scheduler.last_epoch = self.state.global_step - 1
        with warnings.catch_warnings():
            # The scheduler is moved to the resumed step before the new optimizer has made one.
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            self.lr_scheduler.step()


def _spelled(sizes: list[int] | None) -> str:
    return "no groups of parameters" if sizes is None else f"groups of {' and '.join(map(str, sizes))} parameters"


def _group_sizes(optimizer: Any) -> list[int]:
    return [len(group["params"]) for group in optimizer.param_groups]
