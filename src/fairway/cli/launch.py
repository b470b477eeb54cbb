"""`fairway launch`: one model trained by several processes, under supervision."""

from typing import Annotated

from cyclopts import Parameter

from fairway.cli.console.options import Folder, Overrides, Target

GROUP = "Making a model"


def launch(
    target: Target = "",
    /,
    *overrides: Overrides,
    nproc: Annotated[int, Parameter(name="--nproc", help="Ranks on this machine; one for each GPU.")] = 2,
    folder: Folder = None,
    restarts: Annotated[int, Parameter(help="How often a job that died is started again.")] = 10,
    timeout: Annotated[str, Parameter(help="Time without a step after which a rank counts as stuck.")] = "60s",
    start_timeout: Annotated[str, Parameter(help="The same before its first step.")] = "15m",
) -> None:
    """Train on several ranks of this machine, and start again from the newest checkpoint where one dies or hangs.

    Takes what `fairway train` takes. For several machines see `docs/distributed.md`.

    Example: `fairway launch --nproc 2 recipes/default.yaml`
    """
    from fairway.cli.console.progress import progress
    from fairway.core.budget import parse_seconds
    from fairway.core.errors import ConfigError
    from fairway.launch import Job, supervise

    where = ("--folder", str(folder)) if folder is not None else ()
    arguments = ("train", *([target] if target else []), *overrides, *where)
    try:
        patience = {"silence": parse_seconds(timeout), "start": parse_seconds(start_timeout)}
    except ValueError as error:
        raise ConfigError(f"--timeout and --start-timeout are times: {error}.") from None
    with progress() as listener:
        supervise(Job(arguments, nproc, restarts, **patience), listener)
