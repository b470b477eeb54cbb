"""`fairway extend`: a trained model at a longer context."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from fairway.cli.console.options import Json

GROUP = "Using a model"


def extend(
    artifact: Annotated[str, Parameter(help="A `.fwy` file, or a run's folder.")],
    /,
    *,
    context: Annotated[int, Parameter(help="Tokens of the new context.")],
    kind: Annotated[str, Parameter(help="How rotary positions go on: `fairway techniques position`.")] = "yarn",
    out: Annotated[Path | None, Parameter(name=["--out", "-o"], help="Where the new file goes.")] = None,
    text: Annotated[tuple[Path, ...], Parameter(help="Files or folders to measure on; a run has its own.")] = (),
    sample: Annotated[str, Parameter(help="Measure on whole documents of at most so many bytes.")] = "200kB",
    json: Json = False,
) -> None:
    """Write an artifact whose positions reach further, and compare ways to reach: bits per byte by position.

    The weights stay as they are. Without text to measure on, only the file is written.

    Example: `fairway extend runs/default --context 1024 --kind yarn -o long.fwy`
    """
    from fairway.cli.console import output
    from fairway.cli.console.progress import progress
    from fairway.cli.console.scoring import documents_for
    from fairway.cli.console.target import artifact_path
    from fairway.core.device import use_threads
    from fairway.core.storage import write_text
    from fairway.evaluate.by_position import compare_extensions
    from fairway.report.chart import Line, lines, standing_alone
    from fairway.serve.extend import extend as extend_artifact
    from fairway.serve.load import load

    path = artifact_path(artifact)
    target = out or path.with_name(f"{path.stem}-{context}.fwy")
    documents = documents_for(artifact, text, sample)
    size = extend_artifact(path, context, kind, target)
    facts = {"artifact": target, "bytes": size, "context": context, "kind": kind}
    if not documents:
        output.print_json(facts) if json else output.print_facts("", facts)
        return
    use_threads()
    model = load(path)
    with progress() as listener:
        curves = compare_extensions(model, documents, context, listener=listener)
    drawing = target.with_suffix(".svg")
    shown = [Line(curve.name, curve.position, curve.bits_per_byte) for curve in curves]
    plot = lines("Bits per byte by position", shown, "tokens of context", "bits per byte")
    write_text(drawing, standing_alone(plot))
    if json:
        output.print_json({**facts, "trained_context": model.context, "curves": curves, "plot": drawing})
        return
    edge = model.context
    rows = [(curve.name, curve.mean(0, edge), curve.mean(edge), curve.mean()) for curve in curves]
    output.print_table("Bits per byte", ("positions", f"up to {edge:,} tokens", "beyond", "all"), rows)
    output.print_facts("", {**facts, "plot": drawing})
