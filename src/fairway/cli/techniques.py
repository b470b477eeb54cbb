"""`fairway techniques`: everything a recipe can choose from."""

from typing import Annotated

from cyclopts import Parameter

from fairway.cli.console.options import Json

GROUP = "Looking things up"


def techniques(
    slot: Annotated[str, Parameter(help="Only slots whose name contains this, such as `mixer`.")] = "",
    /,
    *,
    json: Json = False,
) -> None:
    """List every technique: its slot, its kind, what it does, and where it comes from.

    Example: `fairway techniques mixer`
    """
    from fairway.cli.console import output
    from fairway.cli.console.catalogue import catalogue

    found = catalogue(slot)
    if json:
        output.print_json(found)
        return
    for title in dict.fromkeys(entry["path"] for entry in found):
        rows = [
            (entry["kind"], entry["summary"], f"{entry['author']} {entry['year']}, {entry['reference']}")
            for entry in found
            if entry["path"] == title
        ]
        output.print_table(title, ("kind", "what it does", "source"), rows)
