"""The part of the trainer that pushes to the Hub: models that load, from small checkpoints, without secrets.

The Trainer pushes the weights that it finds in a checkpoint. Ours hold what can change, under names in memory, so the
model is written once more, into a folder of its own that nothing else writes to while it is uploaded in the background.
"""

from __future__ import annotations

import logging
import shutil
from concurrent.futures import Future, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.utils import broadcast_object_list
from huggingface_hub import HfApi
from transformers import Trainer
from transformers.trainer_utils import HubStrategy, SaveStrategy

from hf_freeze.errors import ConfigError, FreezeError
from hf_freeze.training.uploading import (
    CLIENT_ERRORS,
    Files,
    check_repo_id,
    checkpoint_files,
    prepare_repo,
    push_command,
    pushed_files,
    share_error,
    upload,
)

logger = logging.getLogger(__name__)

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
            return prepare_repo(
                repo_id,
                private=private if private is not None else self.args.hub_private_repo,
                revision=self.args.hub_revision,
                token=token if token is not None else self.args.hub_token,
            )
        except ConfigError as error:
            return error
        except CLIENT_ERRORS as error:
            refusal = share_error(error, repo_id=repo_id, remedy=remedy)
            refusal.__cause__ = error
            return refusal

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
            ShareError: The Hub refuses, or cannot be reached; the model is saved all the same.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        folder = Path(str(self.args.output_dir))
        self.save_model(_internal_call=True)
        if self.hub_model_id is None:
            self._init_repo(token, private, _remedy(folder, self._wanted_repo, revision=self.args.hub_revision))
        if not self.is_world_process_zero():
            return None
        repo_id = str(self.hub_model_id)
        self.create_model_card(**{"model_name": repo_id.rpartition("/")[2], **keywords})
        self._finish_current_push()
        job = self._uploads.run_as_future(
            _push,
            pushed_files(folder, repo_id),
            repo_id,
            message=commit_message or "End of training",
            revision=revision if revision is not None else self.args.hub_revision,
            token=token if token is not None else self.args.hub_token,
            folder=folder,
        )
        return job.result() if blocking else job

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
        staged = Path(str(self.args.output_dir), f"_push-{self.state.global_step}")
        self.save_model(str(staged), _internal_call=True)
        if not self.is_world_process_zero():
            if self.args.should_save:  # one of another node, which saves on a disk of its own
                shutil.rmtree(staged, ignore_errors=True)
            return
        files = pushed_files(staged, str(self.hub_model_id))
        if strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            name = "last-checkpoint" if strategy == HubStrategy.CHECKPOINT else checkpoint.name
            shutil.copytree(checkpoint, staged / name)  # rotation may remove the checkpoint before it is uploaded
            files |= checkpoint_files(staged / name, name)
        self._push_in_background(files, staged)

    def _push_in_background(self, files: Files, staged: Path) -> None:
        in_steps = self.args.save_strategy == SaveStrategy.STEPS
        where = f"step {self.state.global_step}" if in_steps else f"epoch {int(self.state.epoch or 0)}"
        job = self._uploads.run_as_future(
            _push,
            files,
            str(self.hub_model_id),
            message=f"Training in progress, {where}",
            revision=self.args.hub_revision,
            token=self.args.hub_token,
            folder=Path(str(self.args.output_dir)),
            staged=staged,
        )
        self._report_failures()
        self._pushes = (*self._pushes, job)

    def _finish_current_push(self) -> None:
        wait(self._pushes)
        self._report_failures()

    def _report_failures(self) -> None:
        """Warns of pushes that failed in the background, once; training goes on without them."""
        done = [push for push in self._pushes if push.done()]
        self._pushes = tuple(push for push in self._pushes if push not in done)
        for failure in filter(None, (push.exception() for push in done)):
            logger.warning("%s", failure)


def _push(
    files: Files,
    repo_id: str,
    *,
    message: str,
    revision: str | None,
    token: str | None,
    folder: Path,
    staged: Path | None = None,
) -> str:
    """Uploads files and returns the address of the commit.

    Args:
        files: What is pushed.
        repo_id: The repo.
        message: The message of the commit.
        revision: The branch, or None for `main`.
        token: A token, or None for the one that huggingface_hub knows.
        folder: The folder of the run, for what is said where the push fails.
        staged: A folder that is removed in the end.
    """
    try:
        return upload(files, repo_id, message=message, revision=revision, token=token)
    except CLIENT_ERRORS as error:
        raise share_error(error, repo_id=repo_id, remedy=_remedy(folder, repo_id, revision=revision)) from error
    finally:
        if staged is not None:
            shutil.rmtree(staged, ignore_errors=True)


def _remedy(folder: Path, repo_id: str, *, revision: str | None) -> str:
    """Returns what is kept where a push fails, and how to push it by hand."""
    again = push_command(folder, repo_id, revision=revision)
    return f"The run in {str(folder)!r} is intact; when it is done, `{again}` pushes it."
