"""`fairway transfer`: whether the best learning rate of a narrow model is that of a wide one."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from fairway.cli.console.options import Json, Overrides, RecipePath

GROUP = "Making a model"


def transfer(
    recipe: RecipePath = "",
    /,
    *overrides: Overrides,
    widths: Annotated[str, Parameter(help="From the base width up, with commas.")] = "64,128,256",
    factors: Annotated[str, Parameter(help="Powers of two on the recipe's learning rates: first, last.")] = "-3,2",
    steps: Annotated[int, Parameter(help="Training steps of each run.")] = 100,
    seeds: Annotated[int, Parameter(help="Runs to average over.")] = 1,
    folder: Annotated[Path, Parameter(name=["--folder", "-o"], help="Where text and plots go.")] = Path(
        "runs/transfer"
    ),
    json: Json = False,
) -> None:
    """Train several widths at several learning rates, with and without muP; show the best rate of each width and plot.

    With muP the best rate stays: tune at the smallest width, then train the large model with `train.tuned_width`
    set to it. There are (2 * widths - 1) * factors * seeds runs, as both are the same at the first width; each is
    written to `transfer.jsonl` when it is done, and the same command goes on from there after a stop. AdamW shows the
    shift most.

    Example: `fairway transfer recipes/tiny.yaml train.optimizer.kind=adamw --widths 64,128,256,512 --steps 100`
    """
    from fairway.cli.console import output
    from fairway.cli.console.progress import progress
    from fairway.cli.console.target import chosen_recipe
    from fairway.core.storage import write_text
    from fairway.run import Run
    from fairway.study import KINDS, draw_transfer, whole_numbers
    from fairway.study import transfer as sweep

    sizes = whole_numbers("--widths", widths)
    first, *_, last = whole_numbers("--factors", factors)
    rates = [2.0**power for power in range(first, last + 1)]
    chosen = chosen_recipe(recipe, overrides)
    with progress() as listener:
        manifest = Run(chosen, folder).prepare(listener)
        found = sweep(chosen, manifest, sizes, rates, steps, seeds, listener, folder / "transfer.jsonl")
    plots = {kind: folder / f"transfer-{kind}.svg" for kind in KINDS}
    for kind, path in plots.items():
        write_text(path, draw_transfer(found, kind))
    shifts, edges = {kind: found.shift(kind) for kind in KINDS}, {kind: found.at_the_edge(kind) for kind in KINDS}
    if json:
        output.print_json({**vars(found), "shifts": shifts, "at_the_edge": edges, "plots": plots})
        return
    for kind in KINDS:
        found_here = zip(sizes, found.losses[kind], found.best[kind], strict=True)
        rows = [(size, *losses, best) for size, losses, best in found_here]
        output.print_table(f"{kind}: nats", ("width", *(f"{rate:g}" for rate in rates), "best"), rows)
    facts: dict[str, object] = {f"shift of the best rate, {kind}": f"2^{shift:g}" for kind, shift in shifts.items()}
    for kind in (kind for kind in KINDS if edges[kind]):
        facts[f"at the edge, {kind}"] = f"width {', '.join(map(str, edges[kind]))}; try wider --factors"
    output.print_facts("", facts | {f"plot, {kind}": path for kind, path in plots.items()})
