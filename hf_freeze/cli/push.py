"""`hf-freeze push`: a finished run, to the Hub."""

from __future__ import annotations

from typing import Annotated

import typer

from hf_freeze.cli.terminal import errors_on_stderr, new_console, print_lines


def push(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="Repo on the Hub: NAME or OWNER/NAME.")],
    revision: Annotated[
        str | None, typer.Option("--revision", metavar="BRANCH", help="Branch; main where it is not given.")
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="Make the repo private, where it does not exist yet.")
    ] = False,
) -> None:
    """Push the model, tokenizer, card and config of a finished run to the Hub."""
    with errors_on_stderr():
        from hf_freeze.sharing.hub import push_run  # takes seconds

        pushed = push_run(run, repo, revision=revision, private=True if private else None)
        print_lines(new_console(), f"Pushed {', '.join(pushed.files)} to {pushed.repo_id}:", pushed.url)
