"""`fairway health`: how gradients and activations flow through a model."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from fairway.cli.console.options import Json, Overrides, Target

GROUP = "Making a model"


def health(
    target: Target = "",
    /,
    *overrides: Overrides,
    folder: Annotated[Path, Parameter(name=["--folder", "-o"], help="Where the prepared text goes.")] = Path(
        "runs/health"
    ),
    json: Json = False,
) -> None:
    """Show norms of weights, gradients and activations layer by layer, and units that are dead, on one training batch.

    Of the newest checkpoint of a run, or of a recipe's model before training.

    Example: `fairway health runs/default`
    """
    from fairway.cli.console import output
    from fairway.cli.console.progress import progress
    from fairway.cli.console.target import chosen_recipe, open_folder
    from fairway.run import Run
    from fairway.train.health import examine
    from fairway.train.saving import resume

    job = open_folder(target) if target and Path(target).is_dir() else Run(chosen_recipe(target, overrides), folder)
    with progress() as listener:
        loop = job.training(job.prepare(listener))
        resume(loop, listener)
    found = examine(loop, loop.batch_at(1.0)[0])
    if json:
        output.print_json({**vars(found), "step": loop.step, "warnings": found.warnings()})
        return
    flows = [tuple(vars(flow).values()) for flow in found.flows]
    output.print_table("Gradients", ("parameter", "role", "weight", "gradient", "ratio"), flows)
    units = [tuple(vars(one).values()) for one in found.units]
    output.print_table("What enters each linear map", ("map", "units", "size", "zeros", "dead"), units)
    facts = {"step": loop.step, "loss": found.loss, "gradient norm": found.gradient_norm}
    output.print_facts("", facts | {"look at": " ".join(found.warnings()) or "nothing"})
