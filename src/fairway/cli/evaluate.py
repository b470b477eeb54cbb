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
    prove: Annotated[
        bool,
        Parameter(negative="", help="Confirm the score: really compress the text with the artifact, and get it back."),
    ] = False,
    adapt: Annotated[
        str | None,
        Parameter(
            help="Let the model learn from text already scored: `lora`, `full`, or settings as `method=lora,rank=4`."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Measure bits per byte over the raw bytes of whole documents, from the artifact alone, behind every gate.

    Example: `fairway evaluate model.fwy --text notes/ --prove`
    """
    from fairway.cli.console import output
    from fairway.cli.console.progress import progress
    from fairway.cli.console.scoring import score_run, score_text

    with progress() as listener:
        if text or prove or adapt:
            score = score_text(artifact, text, settings, listener, prove=prove, adapt=adapt)
        else:
            score = score_run(artifact, settings, listener)
    if json:
        output.print_json(score)
        return
    verdicts = {True: "passed", False: "failed", None: "not asked"}
    gates = [(gate["name"].replace("_", " "), verdicts[gate["passed"]], gate["detail"]) for gate in score.pop("gates")]
    proof = score.pop("proof", None)
    score.pop("chain", None)
    output.print_facts("Score", {name.replace("_", " "): value for name, value in score.items()})
    output.print_table("Gates", ("gate", "verdict", "detail"), gates)
    if proof is not None:
        output.print_facts("Proof", {name.replace("_", " "): value for name, value in proof.items()})
