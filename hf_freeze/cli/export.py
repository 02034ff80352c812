"""`hf-freeze export`: a trained model for deployment."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from hf_freeze.cli.merge import BaseOption, OutputArgument, OverwriteOption, RevisionOption, RunArgument, TrustOption
from hf_freeze.cli.terminal import errors_on_stderr

FormatOption = Annotated[
    str,
    typer.Option(
        "--format", metavar="FORMAT", help="transformers: a plain folder of Transformers; onnx: an ONNX model."
    ),
]
DtypeOption = Annotated[
    str | None,
    typer.Option(metavar="DTYPE", help="Type of the weights, such as bfloat16; as they were saved if not given."),
]
RowsOption = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="Texts, one on each line, that an ONNX model is compared on; those of the run if not given.",
    ),
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
    rows: RowsOption = None,
) -> None:
    """Write the model of RUN for deployment: merged, frozen, in eval mode."""
    with errors_on_stderr():
        from hf_freeze.run.example_rows import rows_of_file, rows_of_run  # takes seconds
        from hf_freeze.sharing.export import export_model

        given = rows_of_file(rows) if rows is not None else rows_of_run(run) if export_format == "onnx" else ()
        model = export_model(
            run,
            output,
            export_format=export_format,
            rows=given,
            dtype=dtype,
            base=base,
            revision=revision,
            trust_remote_code=trust_remote_code,
            overwrite=overwrite,
        )
        written = str(model.dtype).removeprefix("torch.")
        sys.stdout.write(f"A {type(model).__name__} in {written} is in {output}, in the format {export_format}.\n")
