"""`fairway generate`: text from an artifact."""

from typing import Annotated

from cyclopts import Parameter

from fairway.cli.console.options import Json

GROUP = "Using a model"


def generate(
    artifact: Annotated[str, Parameter(help="A `.fwy` file, or a run's folder.")],
    /,
    *,
    prompt: Annotated[str, Parameter(help="The text to go on from.")] = "",
    tokens: Annotated[int, Parameter(help="Stop after so many tokens.")] = 200,
    temperature: Annotated[
        float, Parameter(help="0 always takes the likeliest token; 1 samples as the model believes.")
    ] = 0.8,
    top_k: Annotated[int | None, Parameter(help="Sample among so many likeliest tokens.")] = None,
    top_p: Annotated[float, Parameter(help="Sample among the likeliest tokens of this total probability.")] = 0.95,
    seed: Annotated[int, Parameter(help="The same seed writes the same text.")] = 0,
    stop: Annotated[tuple[str, ...], Parameter(help="End before this text; may be given several times.")] = (),
    json: Json = False,
) -> None:
    """Write text that goes on from a prompt, piece by piece as it is made.

    Example: `fairway generate runs/default --prompt "def area(" --temperature 0.5 --tokens 100`
    """
    import time

    from fairway.cli.console import output
    from fairway.cli.console.target import artifact_path
    from fairway.serve.load import load

    model = load(artifact_path(artifact))
    sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    pieces = model.generate(prompt, tokens=tokens, stop=stop, **sampling)
    start = time.perf_counter()
    text = ""
    if not json:
        print(prompt, end="", flush=True)
    for piece in pieces:
        text += piece
        if not json:
            print(piece, end="", flush=True)
    if json:
        output.print_json({"prompt": prompt, "text": text, "seconds": time.perf_counter() - start})
    else:
        print()
