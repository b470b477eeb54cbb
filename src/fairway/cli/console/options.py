"""Options that several verbs take, with one spelling and one help text each."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

Target = Annotated[
    str,
    Parameter(
        show_default=False,
        help="A recipe (YAML), or the folder of a run to go on with. Without one, the built-in defaults.",
    ),
]
RecipePath = Annotated[str, Parameter(show_default=False, help="A recipe (YAML). Without one, the built-in defaults.")]
Overrides = Annotated[str, Parameter(help="Changes to the recipe: `model.width=256 model.mixer.kind=attention`.")]
ByteDial = Annotated[
    str | None,
    Parameter(name="--bytes", help="Largest artifact (`500kB`, `16MB`); the model's size follows."),
]
TimeDial = Annotated[
    str | None,
    Parameter(name="--time", help="Training time (`90s`, `3m`, `1h`); the model's size follows."),
]
Folder = Annotated[
    Path | None, Parameter(name=["--folder", "-o"], help="Where the run lives; `runs/<name>` if not given.")
]
AllowChanges = Annotated[
    bool,
    Parameter(
        name="--allow-changes",
        negative="",
        show_default=False,
        help="Go on in a folder though recipe, text, code or torch changed; `changes.jsonl` there says what.",
    ),
]
Json = Annotated[
    bool, Parameter(name="--json", negative="", show_default=False, help="End with one line of JSON on stdout.")
]
