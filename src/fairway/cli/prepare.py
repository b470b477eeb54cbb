"""`fairway prepare`: text to checked token shards."""

from fairway.cli.console.options import ByteDial, Folder, Json, Overrides, Target, TimeDial

GROUP = "Making a model"


def prepare(
    target: Target = "",
    /,
    *overrides: Overrides,
    size: ByteDial = None,
    time: TimeDial = None,
    folder: Folder = None,
    json: Json = False,
) -> None:
    """Read the text, split it into training and validation, train the tokenizer, write token shards and their manifest.

    Example: `fairway prepare recipes/default.yaml data.source.kind=text data.source.path=notes/`
    """
    from fairway.cli.console import output
    from fairway.cli.console.progress import progress
    from fairway.cli.console.target import open_run

    job = open_run(target, overrides, size, time, folder)
    with progress() as listener:
        manifest = job.prepare(listener)
    splits = {"train": manifest.train, "validation": manifest.validation}
    record = manifest.tokenizer_record
    if json:
        counts = {name: split.model_dump(mode="json") for name, split in splits.items()}
        output.print_json(
            {"run": job.folder, "data": manifest.folder, **counts, "tokenizer": record.model_dump(mode="json")}
        )
        return
    rows = [
        (name, split.documents, split.bytes, split.tokens, split.bytes / max(1, split.tokens))
        for name, split in splits.items()
    ]
    output.print_table(f"{manifest.folder}", ("split", "documents", "bytes", "tokens", "bytes per token"), rows)
    print(f"Tokenizer {record.kind}, {record.vocabulary:,} ids. Go on with: fairway train {job.folder}")
