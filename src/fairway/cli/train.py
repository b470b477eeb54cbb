"""`fairway train`: token shards to trained weights."""

from fairway.cli.console.options import ByteDial, Folder, Json, Overrides, Target, TimeDial

GROUP = "Making a model"


def train(
    target: Target = "",
    /,
    *overrides: Overrides,
    size: ByteDial = None,
    time: TimeDial = None,
    folder: Folder = None,
    json: Json = False,
) -> None:
    """Train to the end of the time or step budget, from the newest checkpoint if there is one. Prepares the data if needed.

    Example: `fairway train runs/default`
    """
    from fairway.cli.console import output
    from fairway.cli.console.ending import can_resume_by
    from fairway.cli.console.progress import progress
    from fairway.cli.console.target import open_run

    job = open_run(target, overrides, size, time, folder)
    can_resume_by(f"fairway train {job.folder}")
    with progress() as listener:
        loop = job.train(listener)
    facts = {"run": job.folder, "steps": loop.step, "seconds_train": loop.clock.elapsed}
    if json:
        output.print_json(facts)
        return
    output.print_facts("", facts)
    print(f"Go on with: fairway compress {job.folder}")
