"""The part of the trainer that has what is frozen chosen before training, once for all processes and resumed runs."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from torch import nn
from tqdm.auto import tqdm

from hf_freeze.config import AdapterConfig, FreezeConfig, ScheduleConfig
from hf_freeze.config.automatic import AutomaticSelection, BudgetSelection, GradientSelection, SnrSelection
from hf_freeze.errors import PlanError
from hf_freeze.plan.apply import apply_plan, plan_of
from hf_freeze.plan.automatic import Chosen, check_automatic
from hf_freeze.plan.prepare import freeze_model
from hf_freeze.plan.snr import choose_by_snr
from hf_freeze.training import checkpoint
from hf_freeze.training.budget_choice import choose_by_budget
from hf_freeze.training.caching import CachingMixin
from hf_freeze.training.gradient_choice import choose_by_gradient
from hf_freeze.training.manifest import newest_complete
from hf_freeze.training.resuming import CheckpointMixin

logger = logging.getLogger(__name__)


class ChoosingMixin(CachingMixin, CheckpointMixin):
    """Freezes the model as the section says, or as an automatic selection chooses."""

    _freeze_section: FreezeConfig | None
    _adapter_entries: tuple[AdapterConfig, ...]
    _schedule_section: ScheduleConfig
    _seed: int
    _chosen: Chosen | None = None

    @property
    def _is_undecided(self) -> bool:
        return self._freeze_section is not None and self._freeze_section.automatic is not None and self._chosen is None

    def _freeze(self, model: nn.Module) -> nn.Module:
        """Freezes a model; where blocks are still to be chosen, none of them."""
        section = self._freeze_section
        if section is not None and section.automatic is not None:
            check_automatic(section.automatic, self._adapter_entries, self._schedule_section.type)
            section = section.undecided if self._chosen is None else self._chosen.section
        frozen = freeze_model(model, section, self._adapter_entries, blocks_path=self._blocks_path)
        if not self._is_undecided:
            apply_plan(frozen, replace(plan_of(frozen), chosen=self._chosen))
            self._follow(frozen, self._schedule_section, section, seed=self._seed)
        return frozen

    def _choose(self) -> None:
        """Has an automatic selection choose, or takes what it chose in the run that is resumed.

        Raises:
            PlanError: It cannot choose.
        """
        if self._freeze_section is None or self._freeze_section.automatic is None:
            return
        selection = self._freeze_section.automatic
        folder = self._folder_to_resume()
        recorded = None if folder is None else self._recorded(folder, selection)
        if recorded is not None:
            self._take(recorded, f"as the run in {folder} did")
            return
        try:
            made: list[Any] = [self._chosen_by(selection, self._freeze_section).record()]
        except PlanError as error:
            made = [error]
        broadcast_object_list(made)  # Rounding and timings differ between processes: that with rank 0 decides.
        if isinstance(made[0], PlanError):
            raise made[0]
        self._take(Chosen.from_record(made[0]), "before training")

    def _folder_to_resume(self) -> Path | None:
        asked: str | bool | None = self.args.resume_from_checkpoint
        if asked is True:
            return newest_complete(Path(str(self.args.output_dir)))
        return Path(asked) if asked else None

    def _recorded(self, folder: Path, selection: AutomaticSelection) -> Chosen | None:
        found = checkpoint.read_chosen(folder)
        return found if found is not None and found.asked == selection.spelling else None

    def train(self, resume_from_checkpoint: str | bool | None = None, *positional: Any, **keywords: Any) -> Any:
        """Trains as the Trainer does; a run that is resumed keeps what was chosen before it began.

        Args:
            resume_from_checkpoint: A checkpoint folder, or True for the newest complete one of the run.
            positional: As for the Trainer.
            keywords: As for the Trainer.

        Raises:
            PlanError: The checkpoint cannot be used.
        """
        if resume_from_checkpoint and self._freeze_section is not None and self._freeze_section.automatic is not None:
            folder = self._resumable(resume_from_checkpoint)
            recorded = self._recorded(folder, self._freeze_section.automatic)
            if recorded is not None and recorded != self._chosen:
                self._take(recorded, f"as the run in {folder} did")
                self._restart_caching()
        return super().train(resume_from_checkpoint, *positional, **keywords)

    def _take(self, chosen: Chosen, when: str) -> None:
        self._chosen = chosen
        self._freeze(self.model)
        if not self.is_world_process_zero():
            return
        for line in (f"Chosen {when}:", *chosen.lines):
            if self.args.disable_tqdm:
                logger.info("%s", line)
            else:
                tqdm.write(line)

    @property
    def may_cache(self) -> bool:
        """Whether the activation cache may be used, whatever the plan."""
        return self._cache_section.enabled is not False and self._reason_of_backend() is None

    def _chosen_by(self, selection: AutomaticSelection, section: FreezeConfig) -> Chosen:
        if isinstance(selection, SnrSelection):
            return choose_by_snr(self.model, plan_of(self.model).layout, section, selection)
        if isinstance(selection, GradientSelection):
            return choose_by_gradient(self, section, selection)
        assert isinstance(selection, BudgetSelection)
        return choose_by_budget(self, section, selection)
