"""`fairway compress`: trained weights to an artifact."""

from typing import Annotated

from cyclopts import Parameter

from fairway.cli.console.options import Json

GROUP = "Making a model"


def compress(
    run: Annotated[str, Parameter(help="The folder of a trained run.")],
    /,
    *,
    json: Json = False,
) -> None:
    """Turn a run's trained weights into one `.fwy` file that fits its byte budget.

    Example: `fairway compress runs/default`
    """
    from fairway.cli.console import output
    from fairway.cli.console.progress import progress
    from fairway.cli.console.target import open_folder

    job = open_folder(run)
    with progress() as listener:
        fit = job.compress(listener)
    facts = {"artifact": job.artifact, "bytes": fit["bytes"], "bytes_cap": fit["cap"]}
    facts |= {"predicted_bytes": fit["predicted_bytes"]}
    if json:
        output.print_json(facts)
        return
    output.print_facts("", facts)
    print(f"Go on with: fairway evaluate {job.folder}")
