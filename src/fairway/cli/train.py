"""`fairway train`: token shards to trained weights."""

from typing import Annotated

from cyclopts import Parameter

from fairway.cli.console.options import AllowChanges, ByteDial, Folder, Json, Overrides, Target, TimeDial

GROUP = "Making a model"


def train(
    target: Target = "",
    /,
    *overrides: Overrides,
    size: ByteDial = None,
    time: TimeDial = None,
    folder: Folder = None,
    allow_changes: AllowChanges = False,
    profile: Annotated[
        bool, Parameter(negative="", show_default=False, help="Show where each millisecond of a step went.")
    ] = False,
    json: Json = False,
) -> None:
    """Train to the end of the time or step budget, from the newest checkpoint if there is one.

    Prepares the data where that is still to be done. Started by `fairway launch`, `torchrun` or a cluster on several
    ranks, they train one model together.

    Example: `fairway train runs/default`
    """
    from fairway.cli.console import output
    from fairway.cli.console.ending import can_resume_by
    from fairway.cli.console.progress import progress
    from fairway.cli.console.target import open_run
    from fairway.core.log import silent
    from fairway.core.storage import read_journal
    from fairway.train.distributed import joined

    with joined() as team:
        with team.first_goes_ahead():
            job = open_run(target, overrides, size, time, folder, allow_changes=allow_changes)
        job.team, job.profiled = team, profile
        can_resume_by(f"fairway train {job.folder}")
        if not team.first:
            job.train(silent)
            return
        with progress() as listener:
            job.train(listener)
    last = read_journal(job.folder / "metrics.jsonl")[-1]
    names = {"step": "steps", "elapsed": "seconds_train", "train/bpb": "train/bpb", "val/bpb": "val/bpb"}
    facts = {"run": job.folder, **{title: last[name] for name, title in names.items() if name in last}}
    if json:
        output.print_json(facts | ({"profile": job.profile} if job.profile else {}))
        return
    output.print_facts("", facts)
    if job.profile:
        whole = job.profile.milliseconds
        for title, times in (("Parts of a step", job.profile.parts), ("Operators", job.profile.operators)):
            rows = [(name, value, output.share(value, whole)) for name, value in times.items()]
            output.print_table(title, ("", "ms a step", "share"), rows)
    print(f"Go on with: fairway compress {job.folder}")
