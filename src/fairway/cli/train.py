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
    """Train to the end of the time or step budget, from the newest checkpoint if there is one.

    Prepares the data where that is still to be done.

    Example: `fairway train runs/default`
    """
    from fairway.cli.console import output
    from fairway.cli.console.ending import can_resume_by
    from fairway.cli.console.progress import progress
    from fairway.cli.console.target import open_run
    from fairway.core.storage import read_journal

    job = open_run(target, overrides, size, time, folder)
    can_resume_by(f"fairway train {job.folder}")
    with progress() as listener:
        job.train(listener)
    last = read_journal(job.folder / "metrics.jsonl")[-1]
    names = {"step": "steps", "elapsed": "seconds_train", "train/bpb": "train/bpb", "val/bpb": "val/bpb"}
    facts = {"run": job.folder, **{title: last[name] for name, title in names.items() if name in last}}
    if json:
        output.print_json(facts)
        return
    output.print_facts("", facts)
    print(f"Go on with: fairway compress {job.folder}")
