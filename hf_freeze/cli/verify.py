"""`hf-freeze verify`: what moved in training, and whether what was frozen did not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from hf_freeze.cli.merge import RevisionOption, RunArgument, TrustOption
from hf_freeze.cli.terminal import errors_on_stderr, new_console, new_grid, print_grid, print_lines

if TYPE_CHECKING:
    from hf_freeze.sharing.verify import Verification

_EXIT_MOVED = 1  # a frozen tensor is not that of the base
_MOST_NAMED = 10  # names of tensors that are listed

BaseOption = Annotated[
    str | None, typer.Option(metavar="MODEL", help="Base model, where it is not where it was in training.")
]


def verify(
    run: RunArgument, base: BaseOption = None, revision: RevisionOption = None, trust_remote_code: TrustOption = False
) -> None:
    """Compare every tensor of RUN with its base model; exit status 1 where a frozen one differs in a bit."""
    with errors_on_stderr():
        from hf_freeze.sharing.verify import verify_model  # takes seconds

        found = verify_model(run, base=base, revision=revision, trust_remote_code=trust_remote_code)
        _print_verification(run, found)
    if not found.holds:
        raise typer.Exit(_EXIT_MOVED)


def _print_verification(run: str, found: Verification) -> None:
    console = new_console()
    at = "" if found.revision is None else f" at {found.revision}"
    print_lines(console, f"{run} against {found.base}{at}", "")
    grid = new_grid(None, "role", "frozen", "trained", "fresh", "moved", "change", "relative", numbers=6)
    for role in found.roles:
        counts = (role.num_frozen, role.num_trained, role.num_fresh, role.num_moved)
        grid.add_row(role.role, *map(str, counts), f"{role.norm:.4g}", f"{role.relative_norm:.3g}")
    print_grid(console, grid)
    if found.holds:
        print_lines(console, f"All {found.num_frozen} frozen tensors that the base has are equal to it, to the bit.")
        return
    print_lines(console, f"{len(found.moved)} of {found.num_frozen} frozen tensors are not those of the base:")
    print_lines(console, *(f"  {name}" for name in found.moved[:_MOST_NAMED]))
    if len(found.moved) > _MOST_NAMED:
        print_lines(console, f"  and {len(found.moved) - _MOST_NAMED} more")
