"""`fairway compress`: trained weights to an artifact."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from fairway.cli.console.options import Json, Overrides

if TYPE_CHECKING:
    from fairway.run import Run

GROUP = "Making a model"


def compress(
    run: Annotated[str, Parameter(help="The folder of a trained run.")],
    /,
    *overrides: Overrides,
    size: Annotated[str | None, Parameter(name="--bytes", help="Largest artifact (`500kB`, `16MB`).")] = None,
    out: Annotated[
        Path | None, Parameter(name=["--out", "-o"], help="The file to write; RUN/compressed.fwy if not given.")
    ] = None,
    saliency: Annotated[
        bool, Parameter(negative="", help="Write nothing; show what removing weights should cost, matrix by matrix.")
    ] = False,
    json: Json = False,
) -> None:
    """Turn a run's trained weights into one `.fwy` file that fits its byte budget.

    With another budget or other settings of `compress`, a file beside the run's own artifact is written, and the score
    before and after is shown.

    Example: `fairway compress runs/default --bytes 300kB compress.prune.kind=wanda compress.prune.sparsity=0.5`
    """
    from fairway.cli.console import output
    from fairway.cli.console.progress import progress
    from fairway.cli.console.recompress import recompressed
    from fairway.cli.console.target import open_folder

    job = open_folder(run)
    if saliency:
        _show_saliency(job, json)
        return
    if overrides or size or out:
        with progress() as listener:
            facts = recompressed(job, overrides, size, out or job.folder / "compressed.fwy", listener)
        scores = {name: f"{value:.4f}" for name, value in facts.items() if name.startswith("bits_per_byte_")}
        output.print_json(facts) if json else output.print_facts("", facts | scores)
        return
    with progress() as listener:
        fit = job.compress(listener)
    facts = {"artifact": job.artifact, "bytes": fit["bytes"], "bytes_cap": fit["cap"]}
    facts |= {"predicted_bytes": fit["predicted_bytes"]}
    if json:
        output.print_json(facts)
        return
    output.print_facts("", facts)
    print(f"Go on with: fairway evaluate {job.folder}")


def _show_saliency(job: "Run", json: bool) -> None:
    from fairway.cli.console import output
    from fairway.cli.console.progress import progress
    from fairway.cli.console.recompress import salient
    from fairway.compress.saliency import SHARES

    with progress() as listener:
        rows = salient(job, listener)
    if json:
        output.print_json({"shares": SHARES, "matrices": [vars(row) for row in rows]})
        return
    columns = ["matrix", "weights", "zeros", *(f"{100 * s:g} % go" for s in SHARES), "by size at 50 %"]
    middle = SHARES.index(0.5)
    shown = []
    for row in rows:
        rises = (f"{rise:.2g}" for rise in (*row.rises, row.by_size[middle]))
        shown.append((row.name, row.weights, f"{100 * row.zeros:.1f} %", *rises))
    output.print_table("Expected rise of the loss, in nats a token (least salient weights first)", columns, shown)
