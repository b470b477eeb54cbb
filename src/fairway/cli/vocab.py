"""`fairway vocab`: the size of vocabulary that suits a text and a budget."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from fairway.cli.console.options import Json, Overrides, RecipePath

if TYPE_CHECKING:
    from fairway.core.budget import Budget

GROUP = "Making a model"
CELLS: dict[str, Callable[[Any], object]] = {
    "ids": lambda row: row.vocabulary,
    "tokens/byte": lambda row: row.tokens_per_byte,
    "model": lambda row: f"{row.width} x {row.layers}",
    "table bytes": lambda row: row.embedding_bytes,
    "artifact": lambda row: row.artifact_bytes,
    "MFLOP/byte": lambda row: row.flops_per_byte / 1e6,
    "MB seen": lambda row: row.bytes_seen / 1e6,
    "predicted": lambda row: row.predicted,
    "measured": lambda row: row.measured,
}
"""The columns of the table."""


def vocab(
    recipe: RecipePath = "",
    /,
    *overrides: Overrides,
    text: Annotated[str | None, Parameter(help="A file or folder of text; the recipe's own data if not given.")] = None,
    size: Annotated[str | None, Parameter(name="--bytes", help="Largest artifact (`500kB`, `1MB`).")] = None,
    time: Annotated[str | None, Parameter(name="--time", help="Training time that sizes are predicted for.")] = None,
    train: Annotated[
        str | None, Parameter(name="--train", help="Train and score every size for this long (`30s`).")
    ] = None,
    sizes: Annotated[tuple[int, ...], Parameter(help="Sizes to compare; may be given several times.")] = (),
    folder: Annotated[Path, Parameter(name=["--folder", "-o"], help="Where data, runs and the plot go.")] = Path(
        "runs/vocab"
    ),
    json: Json = False,
) -> None:
    """Compare sizes of a byte-pair vocabulary at equal bytes and seconds, and name the best one.

    Give the same command again to go on after a stop: sizes that are done are not trained again.

    Example: `fairway vocab --text notes/ --bytes 1MB --train 30s`
    """
    from fairway.cli.console import output
    from fairway.cli.console.ending import can_resume_by
    from fairway.cli.console.progress import progress
    from fairway.cli.console.target import budgeted, split_target
    from fairway.core.storage import write_text
    from fairway.vocab import FITTED, SIZES, plot, search

    path, assignments = split_target(recipe, overrides)
    source = [] if text is None else ["data.source.kind=text", f"data.source.path={text}"]
    base = budgeted(path, [*source, *assignments], size, train or time)
    fixed = [assignment.partition("=")[0].strip() for assignment in assignments]
    can_resume_by("the same command")
    with progress() as listener:
        found = search(base, folder, listener, sizes or SIZES, measure=train is not None, fixed=fixed)
    drawing = folder / "vocabulary.svg"
    write_text(drawing, plot(found))
    if json:
        output.print_json({**found.plain(), "plot": drawing})
        return
    rows = [[cell(row) for cell in CELLS.values()] for row in found.rows]
    output.print_table(_title(base.budget), tuple(CELLS), rows)
    for left, reason in found.left_out.items():
        print(f"{left:,} ids are left out: {reason}")
    how = "predicted; --train 30s would measure it" if found.best.measured is None else "measured"
    print(f"Take data.tokenizer.vocabulary={found.best.vocabulary}: the fewest bits per byte {how}. Plot: {drawing}")
    if found.hopeful:
        print(f"The prediction was tried up to {FITTED:,} ids and flatters larger sizes, most in short training.")


def _title(budget: "Budget") -> str:
    from fairway.core.budget import show_bytes, show_seconds

    training = show_seconds(budget.seconds) if budget.steps is None else f"{budget.steps:,} steps"
    return f"Vocabularies within {show_bytes(budget.bytes)} and {training} of training"
