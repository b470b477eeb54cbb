"""`fairway run`: from text to a proven score."""

from fairway.cli.console.options import ByteDial, Folder, Json, Overrides, Target, TimeDial

GROUP = "Making a model"


def run(
    target: Target = "",
    /,
    *overrides: Overrides,
    size: ByteDial = None,
    time: TimeDial = None,
    folder: Folder = None,
    json: Json = False,
) -> None:
    """Do everything: prepare text, train, compress to the byte budget, score the artifact, write a sample and a report.

    Give the same command again, or the run's folder, to go on after a stop.

    Example: `fairway run recipes/default.yaml data.source.kind=text data.source.path=notes/ --bytes 500kB --time 1m`
    """
    from fairway.cli.console import output
    from fairway.cli.console.progress import progress
    from fairway.cli.console.target import open_run
    from fairway.report.page import write_report

    job = open_run(target, overrides, size, time, folder)
    with progress() as listener:
        summary = job.execute(listener)
        report = write_report(job.folder)
    print((job.folder / "sample.txt").read_text(encoding="utf-8"), end="\n\n")
    if json:
        output.print_json(summary)
        return
    output.print_facts(
        "",
        {
            "bits per byte": f"{summary.bits_per_byte:.4f}",
            "artifact": f"{summary.artifact}, {output.size(summary.bytes)} of {output.size(summary.bytes_cap)}",
            "training": f"{summary.seconds_train:.1f} s, {summary.steps:,} steps, {summary.tokens:,} tokens",
            "in all": f"{summary.seconds_total:.1f} s",
            "report": report,
        },
    )
