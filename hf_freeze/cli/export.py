"""`hf-freeze export`: a trained model for deployment."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from hf_freeze.cli.merge import BaseOption, OutputArgument, OverwriteOption, RevisionOption, RunArgument, TrustOption
from hf_freeze.cli.terminal import errors_on_stderr

FormatOption = Annotated[
    str, typer.Option("--format", metavar="FORMAT", help="transformers: a plain folder of Transformers.")
]
DtypeOption = Annotated[
    str | None,
    typer.Option(metavar="DTYPE", help="Type of the weights, such as bfloat16; as they were saved if not given."),
]


def export(
    run: RunArgument,
    output: OutputArgument,
    export_format: FormatOption = "transformers",
    dtype: DtypeOption = None,
    base: BaseOption = None,
    revision: RevisionOption = None,
    trust_remote_code: TrustOption = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Write the model of RUN for deployment: merged, frozen, in eval mode."""
    with errors_on_stderr():
        from hf_freeze.sharing.export import export_model  # takes seconds

        model = export_model(
            run,
            output,
            export_format=export_format,
            dtype=dtype,
            base=base,
            revision=revision,
            trust_remote_code=trust_remote_code,
            overwrite=overwrite,
        )
        written = str(model.dtype).removeprefix("torch.")
        sys.stdout.write(f"A {type(model).__name__} in {written} is in {output}, in the format {export_format}.\n")
