"""`fairway compress-text`: any file in as few bytes as a model can."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from fairway.cli.console.options import Json

GROUP = "Using a model"


def compress_text(
    artifact: Annotated[str, Parameter(help="A `.fwy` file, or a run's folder; `decompress-text` needs the same.")],
    source: Annotated[Path, Parameter(help="The file to compress; any bytes.")],
    target: Annotated[
        Path | None, Parameter(help="Where to write; the source with `.fwyz` added if not given.")
    ] = None,
    /,
    *,
    fast: Annotated[
        bool,
        Parameter(negative="", help="Compute in fp32: about twice as fast, readable on machines that round alike."),
    ] = False,
    json: Json = False,
) -> None:
    """Compress a file with an artifact's predictions. Whatever goes in comes back, byte for byte.

    Example: `fairway compress-text runs/default notes.txt`
    """
    from fairway.cli.console import output
    from fairway.cli.console.files import read_file
    from fairway.cli.console.target import artifact_path
    from fairway.core.storage import write_bytes
    from fairway.serve.load import load

    data = read_file(source)
    target = target or source.with_name(source.name + ".fwyz")
    compressed = load(artifact_path(artifact)).compress(data, precision="fp32" if fast else "fp64")
    write_bytes(target, compressed)
    facts: dict[str, Any] = {"file": target, "bytes": len(compressed), "bytes_before": len(data)}
    if data:
        facts["bits_per_byte"] = 8 * len(compressed) / len(data)
    output.print_json(facts) if json else output.print_facts("", facts)
