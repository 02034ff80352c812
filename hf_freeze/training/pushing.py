"""The part of the trainer that pushes to the Hub: models that load, from small checkpoints, without secrets.

The Trainer pushes the weights that it finds in a checkpoint. Ours hold what can change, under names in memory, so the
model is written once more, into a folder of its own that nothing else writes to while it is uploaded in the background.
"""

from __future__ import annotations

import logging
import shutil
from concurrent.futures import Future, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from accelerate.utils import broadcast_object_list
from huggingface_hub import HfApi
from transformers import Trainer
from transformers.trainer_utils import HubStrategy, SaveStrategy

from hf_freeze.errors import FreezeError
from hf_freeze.training.uploading import (
    check_repo_id,
    checkpoint_files,
    errors_in_words,
    prepare_repo,
    push_command,
    pushed_files,
    upload,
)

logger = logging.getLogger(__name__)

_STAGED: Final = "_push-"  # Folders with this prefix hold what is being pushed.
_MEETING: Final = 30.0  # seconds between two meetings of processes that wait for a push

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object  # The Trainer class comes behind the mixin among the bases of whatever class uses it.


class PushingMixin(_Base):
    """Pushes what loads."""

    hub_model_id: Any  # The Trainer declares that it is None.
    _uploads: HfApi
    _pushes: tuple[Future[str], ...] = ()

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Makes the repo that is pushed to, and its branch, before any work begins.

        Args:
            token: A token, where it is not `args.hub_token` or the one that huggingface_hub knows.
            private: Whether a repo that is made is private, where `args.hub_private_repo` does not say it.

        Raises:
            ConfigError: No repo can have this name.
            ShareError: The Hub refuses, or cannot be reached.
        """
        self._init_repo(
            token, private, "Then start again, or train with push_to_hub off and push the run when it is done."
        )

    def _init_repo(self, token: str | None, private: bool | None, remedy: str) -> None:
        # All processes leave together where the first one fails: the others would wait for it.
        (outcome,) = broadcast_object_list([self._prepared_repo(token, private, remedy)])
        if isinstance(outcome, FreezeError):
            raise outcome
        self.hub_model_id = outcome
        if self.is_world_process_zero():
            self._uploads = HfApi()  # It uploads one push after the other.

    def _prepared_repo(self, token: str | None, private: bool | None, remedy: str) -> str | FreezeError | None:
        """Returns the full name of the repo, once it is there, or what is wrong; None in all but the first process."""
        if not self.is_world_process_zero():
            return None
        repo_id = self._wanted_repo
        try:
            check_repo_id(repo_id)
            with errors_in_words(repo_id, remedy=remedy):
                return prepare_repo(
                    repo_id,
                    private=private if private is not None else self.args.hub_private_repo,
                    revision=self.args.hub_revision,
                    token=token if token is not None else self.args.hub_token,
                )
        except FreezeError as error:
            return error

    @property
    def _wanted_repo(self) -> str:
        return str(self.args.hub_model_id or Path(str(self.args.output_dir)).absolute().name)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **keywords: Any,
    ) -> Any:
        """Saves the model with its card and pushes both.

        Args:
            commit_message: The message of the commit.
            blocking: Whether to wait until it is pushed.
            token: A token, where it is not `args.hub_token` or the one that huggingface_hub knows.
            revision: The branch, where it is not `args.hub_revision`.
            private: Whether a repo that is made is private.
            keywords: As for `create_model_card`.

        Returns:
            The address of the commit, or a future of it where it is not waited for; None in all but one process.

        Raises:
            ConfigError: No repo can have this name, or a file of the run is damaged.
            ShareError: The Hub refuses, or cannot be reached; the model is saved all the same. It is raised in every
                process.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        folder = Path(str(self.args.output_dir))
        self.save_model(_internal_call=True)
        if self.hub_model_id is None:
            self._init_repo(token, private, _remedy(folder, self._wanted_repo, revision=self.args.hub_revision))
        job = None
        if self.is_world_process_zero():
            self.create_model_card(**{"model_name": str(self.hub_model_id).rpartition("/")[2], **keywords})
            job = self._start_push(
                folder,
                message=commit_message or "End of training",
                revision=revision if revision is not None else self.args.hub_revision,
                token=token if token is not None else self.args.hub_token,
            )
        if not blocking:
            return job
        failure = self._failure_everywhere(job)
        self._finish_current_push()
        if failure is not None:
            raise failure
        return None if job is None else job.result()

    def _start_push(self, folder: Path, **options: Any) -> Future[str]:
        run = Path(str(self.args.output_dir))
        return self._uploads.run_as_future(_push, folder, str(self.hub_model_id), run=run, **options)

    def _failure_everywhere(self, job: Future[str] | None) -> FreezeError | None:
        """Waits for a push of the first process, and returns in all of them why it failed, or None.

        The processes meet while they wait: a collective operation gives up after some minutes, and an upload may take
        longer.

        Args:
            job: The push; None in all but the first process.
        """
        while True:
            told: list[tuple[bool, FreezeError | None]] = [(True, None)]
            if job is not None:
                is_done = bool(wait((job,), timeout=_MEETING).done)
                error = job.exception() if is_done else None
                told = [(is_done, error if isinstance(error, FreezeError) else None)]
            broadcast_object_list(told)
            is_done, failure = told[0]
            if is_done:
                return failure

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Does nothing: the Trainer calls it before the checkpoint is complete."""

    def _push_complete_checkpoint(self, checkpoint: Path) -> None:
        """Pushes the model as it is now, and the checkpoint with it where `args.hub_strategy` asks for it.

        Args:
            checkpoint: The checkpoint that was just declared complete.
        """
        strategy = self.args.hub_strategy
        if not self.args.push_to_hub or strategy == HubStrategy.END:
            return
        is_busy = not self.args.hub_always_push and not all(push.done() for push in self._pushes)
        if broadcast_object_list([is_busy])[0]:  # saving may take all processes
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        staged = Path(str(self.args.output_dir), f"{_STAGED}{self.state.global_step}")
        self.save_model(str(staged), _internal_call=True)
        if not self.is_world_process_zero():
            if self.args.should_save:  # one of another node, which saves on a disk of its own
                shutil.rmtree(staged, ignore_errors=True)
            return
        name = None
        if strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            name = "last-checkpoint" if strategy == HubStrategy.CHECKPOINT else checkpoint.name
            shutil.copytree(checkpoint, staged / name)  # rotation may remove the checkpoint before it is uploaded
        self._push_in_background(staged, name)

    def _push_in_background(self, staged: Path, checkpoint: str | None) -> None:
        in_steps = self.args.save_strategy == SaveStrategy.STEPS
        where = f"step {self.state.global_step}" if in_steps else f"epoch {int(self.state.epoch or 0)}"
        job = self._start_push(
            staged,
            message=f"Training in progress, {where}",
            revision=self.args.hub_revision,
            token=self.args.hub_token,
            checkpoint=checkpoint,
        )
        self._report_failures()
        self._pushes = (*self._pushes, job)

    def _finish_current_push(self) -> None:
        wait(self._pushes)
        self._report_failures()
        if self.args.should_save:  # What is there still was left by a process that was killed.
            for staged in Path(str(self.args.output_dir)).glob(f"{_STAGED}*"):
                shutil.rmtree(staged, ignore_errors=True)

    def _report_failures(self) -> None:
        """Warns of pushes that failed in the background, once; training goes on without them."""
        done = [push for push in self._pushes if push.done()]
        self._pushes = tuple(push for push in self._pushes if push not in done)
        for failure in filter(None, (push.exception() for push in done)):
            logger.warning("%s", failure)


def _push(
    folder: Path,
    repo_id: str,
    *,
    message: str,
    revision: str | None,
    token: str | None,
    run: Path,
    checkpoint: str | None = None,
) -> str:
    """Uploads a model and returns the address of the commit.

    Args:
        folder: The folder of the model; it is removed in the end where it is not that of the run.
        repo_id: The repo.
        message: The message of the commit.
        revision: The branch, or None for `main`.
        token: A token, or None for the one that huggingface_hub knows.
        run: The folder of the run, for what is said where the push fails.
        checkpoint: The name of a checkpoint in the folder that is pushed, too.
    """
    try:
        files = pushed_files(folder, repo_id)
        if checkpoint is not None:
            files |= checkpoint_files(folder / checkpoint, checkpoint)
        with errors_in_words(repo_id, remedy=_remedy(run, repo_id, revision=revision)):
            return upload(files, repo_id, message=message, revision=revision, token=token)
    finally:
        if folder != run:
            shutil.rmtree(folder, ignore_errors=True)


def _remedy(folder: Path, repo_id: str, *, revision: str | None) -> str:
    """Returns what is kept where a push fails, and how to push it by hand."""
    again = push_command(folder, repo_id, revision=revision)
    return f"The run in {str(folder)!r} is intact; when it is done, `{again}` pushes it."
