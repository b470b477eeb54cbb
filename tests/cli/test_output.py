import json
import math

from fairway.cli.console.output import print_json, print_table, share, show, size


def test_json_is_one_strict_line(capsys):
    print_json({"a": math.nan, "b": [math.inf, 1.5], "text": "two\nlines"})
    line = capsys.readouterr().out
    assert line.count("\n") == 1
    assert json.loads(line) == {"a": None, "b": [None, 1.5], "text": "two\nlines"}


def test_numbers_in_a_table_are_aligned_on_the_right(capsys):
    print_table("Title", ("name", "count"), [("a", 5), ("long name", 12345)])
    title, head, first, second = capsys.readouterr().out.rstrip().splitlines()
    assert title.strip() == "Title"
    assert head.rstrip().endswith("count")
    assert len(first.rstrip()) == len(second.rstrip())
    assert second.rstrip().endswith("12,345")


def test_cells_with_brackets_are_not_markup(capsys):
    print_table("", ("name",), [("[red]x[/red]",)])
    assert "[red]x[/red]" in capsys.readouterr().out


def test_values_are_shown_briefly():
    assert [show(value) for value in (None, True, 1234567, 0.123456, 123456.7, (1, 2))] == [
        "-",
        "yes",
        "1,234,567",
        "0.1235",
        "123,457",
        "1, 2",
    ]
    assert share(1, 3) == "33.3 %"
    assert size(1_500_000) == "1.5 MB (1,500,000 bytes)"
