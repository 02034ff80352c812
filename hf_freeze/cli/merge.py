"""`hf-freeze merge`: one plain model of a trained model of any kind."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from hf_freeze.cli.terminal import errors_on_stderr

RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="Folder that a run has written, or a repository on the Hub.")
]
OutputArgument = Annotated[str, typer.Argument(metavar="FOLDER", help="Folder to write to.")]
BaseOption = Annotated[
    str | None, typer.Option(metavar="MODEL", help="Base model, where it is not where it was in training.")
]
RevisionOption = Annotated[str | None, typer.Option(metavar="REVISION", help="Revision of RUN on the Hub.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Write to a folder that is not empty.")]
TrustOption = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")]


def merge(
    run: RunArgument,
    output: OutputArgument,
    base: BaseOption = None,
    revision: RevisionOption = None,
    trust_remote_code: TrustOption = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Write the model of RUN as a plain one, adapters merged, that Transformers loads by itself."""
    with errors_on_stderr():
        from hf_freeze.sharing.merging import write_merged  # takes seconds

        model = write_merged(
            run, output, revision=revision, base=base, trust_remote_code=trust_remote_code, overwrite=overwrite
        )
        sys.stdout.write(f"A {type(model).__name__} in {str(model.dtype).removeprefix('torch.')} is in {output}.\n")
