"""The report says how experts were loaded and tokens chosen, and keeps silent where nothing routes."""

from pathlib import Path

from fairway.core.storage import Journal, read_journal
from fairway.report.page import render
from fairway.report.routing import routing


def records(steps: int) -> list[dict[str, float]]:
    """A log of two expert layers and one routed block."""
    return [
        {
            "step": step,
            "elapsed": 0.1 * step,
            "train/bpb": 3.0,
            "depth.blocks.10.ffn.load_entropy": step / steps,
            "depth.blocks.9.ffn.load_entropy": 0.25,
            "depth.blocks.9.ffn.drop_rate": 0.5,
            "depth.blocks.1.causal_agreement": 0.875,
        }
        for step in range(1, steps + 1)
    ]


def test_each_part_has_a_row_of_means_over_the_last_tenth() -> None:
    found = routing(records(100), "elapsed")
    assert found.columns == ("part", "load entropy", "drop rate", "causal agreement")
    assert found.rows == [
        ("depth.blocks.1", "", "", "0.875"),
        ("depth.blocks.9.ffn", "0.250", "0.500", ""),
        ("depth.blocks.10.ffn", "0.955", "", ""),
    ]
    assert [title for title, _, _ in found.charts] == ["Load entropy", "Drop rate", "Causal agreement"]


def test_a_run_without_routers_has_no_such_section(synthetic_run: Path) -> None:
    assert not routing(read_journal(synthetic_run / "metrics.jsonl"), "elapsed").rows
    assert "Routing" not in render(synthetic_run)


def test_the_page_of_a_run_with_routers_shows_their_figures(synthetic_run: Path) -> None:
    with Journal(synthetic_run / "metrics.jsonl") as journal:
        for record in records(20):
            journal.append({**record, "step": 1000 + record["step"], "val/bpb": 2.0, "val/bpb_ahead": 1.9})
    page = render(synthetic_run)
    assert "<h2>Routing</h2>" in page
    assert "depth.blocks.9.ffn" in page
    assert "looking ahead" in page
