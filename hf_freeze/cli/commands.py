"""The commands: parse, call run, print what it returns."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from hf_freeze.cli import cache, check, export, merge, push, verify
from hf_freeze.cli.cost import print_comparison, print_cost, print_json
from hf_freeze.cli.search import print_answer, shown_progress
from hf_freeze.cli.terminal import errors_on_stderr, new_console, new_grid, print_grid, print_lines, say
from hf_freeze.cli.timeline import print_timeline
from hf_freeze.config import RunConfig, json_schema, load_config
from hf_freeze.insight.packages import require_packages

if TYPE_CHECKING:
    from hf_freeze.run import LayoutTable, PlanTable, RunResult

_EXIT_INTERRUPTED = 130  # what shells report for a process that Ctrl-C ended

app = typer.Typer(
    help="Fine-tune Hugging Face Transformers while only part of the model moves.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(cache.app, name="cache")
app.command()(merge.merge)
app.command()(verify.verify)
app.command()(export.export)
app.command()(check.check)
app.command()(push.push)

ConfigArgument = Annotated[str, typer.Argument(metavar="CONFIG", help="Config file.")]
TargetArgument = Annotated[
    str, typer.Argument(metavar="CONFIG|MODEL", help="Config file, or model: a folder or its name on the Hub.")
]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, such as training.num_train_epochs=1."),
]
FreezeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--freeze",
        metavar="SELECTION",
        help="Blocks to freeze: first=8, last=2, fraction=0.5, indices=[0,1], all or none. With several stacks, "
        "encoder.first=8, once for each.",
    ),
]

AccelerateOption = Annotated[
    str | None,
    typer.Option(
        "--accelerate-config",
        metavar="FILE",
        help="What accelerate launch gets as --config_file, for the cost per process; accelerate's default otherwise.",
    ),
]
CompareOption = Annotated[
    str | None,
    typer.Option(
        "--compare",
        metavar="CONFIG",
        help="Config of the same model and task, to show beside it; overrides hold for both, --freeze for the first.",
    ),
]
ProfileOption = Annotated[
    bool, typer.Option("--profile", help="Take a few real steps, which needs the weights, and predict seconds.")
]


@app.command()
def train(config: ConfigArgument, overrides: OverridesArgument = None) -> None:
    """Train, evaluate and save what CONFIG describes."""
    loaded: RunConfig | None = None
    try:
        with errors_on_stderr():
            loaded = load_config(config, overrides or ())
            from hf_freeze import run  # takes seconds: not before the config is sound

            with check.quiet_about_one_class():
                prepared = run.Run(loaded)
            if prepared.is_main_process:
                check.print_short_report(prepared.data_report)
                _print_plan(prepared.table)
            result = prepared.train()
            if prepared.is_main_process:
                _print_result(result)
            address = prepared.push()
            if address is not None:
                print_lines(new_console(), f"Pushed to the Hub: {address}")
    except KeyboardInterrupt:
        say(_kept(loaded))
        raise typer.Exit(_EXIT_INTERRUPTED) from None


@app.command()
def search(config: ConfigArgument, overrides: OverridesArgument = None) -> None:
    """Train the plans that the search section of CONFIG spans, and recommend one; run again to go on."""
    try:
        with errors_on_stderr():
            loaded = load_config(config, overrides or ())
            require_packages("search", "optuna", "matplotlib", extra="search")
            from hf_freeze.run.searching import search as search_plans  # takes seconds

            metric = "" if loaded.search is None else loaded.search.metric
            with check.quiet_about_one_class(), shown_progress(metric) as watch:
                answer = search_plans(loaded, watch, check.print_short_report)
            print_answer(answer)
    except KeyboardInterrupt:
        say("Interrupted. Every trial that ended is kept; run the same command again to go on.")
        raise typer.Exit(_EXIT_INTERRUPTED) from None


@app.command()
def plan(
    target: TargetArgument,
    overrides: OverridesArgument = None,
    freeze: FreezeOption = None,
    accelerate_config: AccelerateOption = None,
    compare: CompareOption = None,
    profile: ProfileOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Show what trains, where the backward pass stops and what it costs; reads weights for snr and --profile only."""
    with errors_on_stderr():
        from hf_freeze import run

        given = tuple(overrides or ())
        plans = [
            run.priced_plan(target, [*map(_as_override, freeze or ()), *given], accelerate_config, measures=profile)
        ]
        if compare is not None:
            plans.append(run.rival_plan(target, compare, given, accelerate_config, measures=profile))
        console = new_console()
        if as_json:
            print_json(plans)
        elif compare is not None:
            print_comparison(console, (target, compare), *zip(*plans, strict=True))
        else:
            table, cost = plans[0]
            _print_plan(table)
            if table.schedule is not None:
                print_timeline(console, table.schedule, cost.schedule)
            print_cost(console, cost)


@app.command()
def layout(target: TargetArgument, overrides: OverridesArgument = None) -> None:
    """Show where embeddings, blocks and head are in a model; reads no weights."""
    with errors_on_stderr():
        from hf_freeze import run

        _print_layout(run.layout(target, overrides or ()))


@app.command()
def schema() -> None:
    """Print the JSON schema of config files, for editors."""
    sys.stdout.write(json.dumps(json_schema(), indent=2) + "\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command and ends the process.

    Args:
        arguments: The command and its arguments; None for those of the process.
    """
    app(args=arguments, prog_name="hf-freeze")


def _kept(config: RunConfig | None) -> str:
    """Says what an interrupted run leaves, and how to go on."""
    if config is not None:
        from hf_freeze import run

        checkpoint = run.newest_checkpoint(config)
        if checkpoint is not None:
            return (
                f"Interrupted. The newest complete checkpoint is kept: {checkpoint}. To resume from it, add "
                "training.resume_from_checkpoint=true to the same command."
            )
    return "Interrupted. There is no complete checkpoint to resume from."


def _as_override(selection: str) -> str:
    """Returns the override that `--freeze` stands for."""
    return f"freeze.blocks.{selection}" if "=" in selection else f"freeze.blocks={selection}"


def _print_plan(table: PlanTable) -> None:
    console = new_console()
    grid = new_grid(table.model_class, "role", "treatment", "parameters", "trainable", "lr multiplier", numbers=3)
    for row in table.rows:
        factor = "" if row.lr_multiplier is None else f"{row.lr_multiplier:.4g}"
        numbers = (f"{row.num_parameters:,}", f"{row.num_trainable:,}", factor)
        grid.add_row(Text(row.roles), row.treatment, *numbers, style=None if row.num_trainable else "dim")
    grid.add_section()
    grid.add_row("all", "", f"{table.num_parameters:,}", f"{table.num_trainable:,}", "")
    print_grid(console, grid)
    share = table.num_trainable / table.num_parameters
    print_lines(console, f"{share:.2%} of the parameters train.", table.backward, *table.cache, *table.notes)


def _print_layout(table: LayoutTable) -> None:
    console = new_console()
    grid = new_grid(table.model_class, "role", "modules", "parameters", numbers=1)
    for row in table.rows:
        grid.add_row(Text(row.roles), Text("\n".join(row.modules)), f"{row.num_parameters:,}")
    print_grid(console, grid)
    print_lines(console, *table.notes)


def _print_result(result: RunResult) -> None:
    console = new_console()
    print_lines(console, "")  # The Trainer's last line is just above.
    grid = new_grid(None, "metric", "value", numbers=1)
    for name, value in result.metrics.items():
        grid.add_row(name, f"{value:.4f}")
    print_grid(console, grid)
    print_lines(
        console,
        *result.costs.sentences,
        *(f"Advice: {advice}" for advice in result.advice),
        f"The model is saved in {result.output_dir}. To load it:",
        "",
        *(f"    {line}".rstrip() for line in result.loading_lines),
    )
