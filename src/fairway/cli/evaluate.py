"""`fairway evaluate`: the score of an artifact on text."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from fairway.cli.console.options import Json

GROUP = "Making a model"


def evaluate(
    artifact: Annotated[str, Parameter(help="A `.fwy` file; or a run's folder, to score on its own validation text.")],
    /,
    *settings: Annotated[str, Parameter(help="Settings of the score, such as `stride=32` or `mode=plain`.")],
    text: Annotated[tuple[Path, ...], Parameter(help="Files or folders to score on; each file is one document.")] = (),
    json: Json = False,
) -> None:
    """Measure bits per byte over the raw bytes of whole documents, from the artifact alone, behind every gate.

    Example: `fairway evaluate model.fwy --text notes/ --json`
    """
    from fairway.cli.console import output
    from fairway.cli.console.progress import progress
    from fairway.cli.console.scoring import score_files, score_run

    with progress() as listener:
        score = score_files(artifact, text, settings, listener) if text else score_run(artifact, settings, listener)
    if json:
        output.print_json(score)
        return
    verdicts = {True: "passed", False: "failed", None: "not asked"}
    gates = [(gate["name"].replace("_", " "), verdicts[gate["passed"]], gate["detail"]) for gate in score.pop("gates")]
    output.print_facts("Score", {name.replace("_", " "): value for name, value in score.items()})
    output.print_table("Gates", ("gate", "verdict", "detail"), gates)
