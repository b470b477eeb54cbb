"""`fairway find-rate`: a learning rate to begin with."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from fairway.cli.console.options import Json, Overrides, RecipePath

GROUP = "Making a model"


def find_rate(
    recipe: RecipePath = "",
    /,
    *overrides: Overrides,
    steps: Annotated[int, Parameter(help="Steps from the lowest rate to the highest.")] = 100,
    folder: Annotated[Path, Parameter(name=["--folder", "-o"], help="Where the prepared text goes.")] = Path(
        "runs/find-rate"
    ),
    json: Json = False,
) -> None:
    """Raise the learning rate from step to step until the loss explodes, and suggest where it fell fastest.

    Example: `fairway find-rate recipes/tiny.yaml`
    """
    from fairway.cli.console import output
    from fairway.cli.console.progress import progress
    from fairway.cli.console.target import chosen_recipe
    from fairway.run import Run
    from fairway.train.finder import find_rate as search

    job = Run(chosen_recipe(recipe, overrides), folder)
    with progress() as listener:
        loop = job.training(job.prepare(listener))
        found = search(loop, listener, steps=steps)
    rates = {group.name: group.lr * found.suggestion for group in loop.optimizer.groups()}
    if json:
        output.print_json({**vars(found), "rates": rates})
        return
    output.print_table("", ("factor", "loss"), list(zip(found.factors, found.losses, strict=True))[::5])
    output.print_facts("Suggestion", {"factor": found.suggestion, **rates})
