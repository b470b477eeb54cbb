"""`fairway run`: from text to a proven score."""

from typing import TYPE_CHECKING

from fairway.cli.console.options import AllowChanges, ByteDial, Folder, Json, Overrides, Target, TimeDial

if TYPE_CHECKING:
    from fairway.run import Summary

GROUP = "Making a model"


def run(
    target: Target = "",
    /,
    *overrides: Overrides,
    size: ByteDial = None,
    time: TimeDial = None,
    folder: Folder = None,
    allow_changes: AllowChanges = False,
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

    job = open_run(target, overrides, size, time, folder, allow_changes=allow_changes)
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
            **_comparison(summary),
            "in all": f"{summary.seconds_total:.1f} s",
            "report": report,
        },
    )


def _comparison(summary: "Summary") -> dict[str, str]:
    """The same model without the teacher, where there was one."""
    if summary.scratch_bits_per_byte is None:
        return {}
    taught = summary.teacher_seconds_train
    found = {} if taught is None else {"teacher": f"trained for {taught:.1f} s"}
    seconds = f" in {summary.scratch_seconds_train:.1f} s" if summary.scratch_seconds_train is not None else ""
    return {**found, "from scratch": f"{summary.scratch_bits_per_byte:.4f} bits per byte{seconds}, without the teacher"}
