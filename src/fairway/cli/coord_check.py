"""`fairway coord-check`: whether activations change alike at every width."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from fairway.cli.console.options import Json, Overrides, RecipePath

GROUP = "Making a model"


def coord_check(
    recipe: RecipePath = "",
    /,
    *overrides: Overrides,
    widths: Annotated[str, Parameter(help="From the base width up, with commas.")] = "32,64,128,256",
    steps: Annotated[int, Parameter(help="Training steps before measuring.")] = 4,
    seeds: Annotated[int, Parameter(help="Models to average over.")] = 3,
    folder: Annotated[Path, Parameter(name=["--folder", "-o"], help="Where text and plots go.")] = Path(
        "runs/coord-check"
    ),
    json: Json = False,
) -> None:
    """Measure how much a few steps change every layer's output at several widths, with and without muP, and plot it.

    Slopes are exponents of the width: near 0 is right, and 0.5 to 1 is what the standard parametrisation gives. Check
    at a rate near the best one: far below it, logits of narrow models still show their random start and slope down.

    Example: `fairway coord-check recipes/tiny.yaml --widths 32,64,128,256`
    """
    from fairway.cli.console import output
    from fairway.cli.console.progress import progress
    from fairway.cli.console.target import chosen_recipe
    from fairway.core.storage import write_text
    from fairway.run import Run
    from fairway.study import KINDS, coordinate_check, draw_check, whole_numbers

    sizes = whole_numbers("--widths", widths)
    chosen = chosen_recipe(recipe, overrides)
    with progress() as listener:
        manifest = Run(chosen, folder).prepare(listener)
        found = coordinate_check(chosen, manifest, sizes, steps, seeds, listener)
    plots = {kind: folder / f"coord-check-{kind}.svg" for kind in KINDS}
    for kind, path in plots.items():
        write_text(path, draw_check(found, kind))
    if json:
        output.print_json({**vars(found), "plots": plots})
        return
    for kind in KINDS:
        rows = [(layer, *values, found.slopes[kind][layer]) for layer, values in found.changes[kind].items()]
        output.print_table(f"{kind}: change after {steps} steps", ("layer", *map(str, sizes), "slope"), rows)
    steepest = {kind: round(found.worst(kind), 3) for kind in KINDS}
    output.print_facts("", {"steepest": steepest, **{f"plot, {kind}": path for kind, path in plots.items()}})
