"""`fairway decompress-text`: what `compress-text` was given."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from fairway.cli.console.options import Json

GROUP = "Using a model"


def decompress_text(
    artifact: Annotated[str, Parameter(help="The `.fwy` file, or run's folder, that compressed it.")],
    source: Annotated[Path, Parameter(help="What `compress-text` wrote.")],
    target: Annotated[Path | None, Parameter(help="Where to write; the source without `.fwyz` if not given.")] = None,
    /,
    *,
    json: Json = False,
) -> None:
    """Give back a file that `compress-text` wrote.

    Example: `fairway decompress-text runs/default notes.txt.fwyz back.txt`
    """
    from fairway.cli.console import output
    from fairway.cli.console.files import read_file
    from fairway.cli.console.target import artifact_path
    from fairway.core.errors import ConfigError
    from fairway.core.storage import write_bytes
    from fairway.serve.load import load

    if target is None:
        if source.suffix != ".fwyz":
            raise ConfigError(f"{source} does not end in .fwyz; name the file to write.")
        target = source.with_suffix("")
    data = load(artifact_path(artifact)).decompress(read_file(source))
    write_bytes(target, data)
    facts = {"file": target, "bytes": len(data)}
    output.print_json(facts) if json else output.print_facts("", facts)
