import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fairway.core.errors import ConfigError
from fairway.core.storage import write_text
from fairway.report.page import render, write_report

VOID = {"meta", "link", "br", "hr", "img", "input"}


class Checked(HTMLParser):
    """Collects text and attributes and checks that every element is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href") and value]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.words.append(data)


def parsed(html: str) -> Checked:
    checked = Checked()
    checked.feed(html)
    checked.close()
    assert not checked.open
    return checked


def test_the_page_is_whole_and_shows_everything_that_counts(synthetic_run: Path):
    page = parsed(render(synthetic_run))
    text = " ".join(page.words)
    for shown in (
        "1.2345",
        "Where the seconds went",
        "Where the bytes went",
        "Weights in the artifact",
        "every byte once",
        "not asked",
        "Example 9000",
        "bytes: 120000",
        "The area <of> a & rectangle.",
        f"{(synthetic_run / 'model.fwy').stat().st_size:,} of 120,000 bytes",
    ):
        assert shown in text, shown


def test_the_page_needs_no_network_and_runs_no_script(synthetic_run: Path):
    html = render(synthetic_run)
    assert all(address.startswith(("data:", "#")) for address in parsed(html).addresses)
    for outside in ("http://", "https://", "@import", "url(", "<script"):
        assert outside not in html.lower()


def test_hostile_text_in_a_run_stays_text(synthetic_run: Path):
    write_text(synthetic_run / "sample.txt", "</pre><script>alert(1)</script>")
    html = render(synthetic_run)
    assert "<script" not in html
    assert "&lt;script&gt;" in html


def test_an_unfinished_run_has_curves_but_no_score(synthetic_run: Path):
    for name in ("summary.json", "score.json", "ledger.json", "sample.txt", "model.fwy"):
        (synthetic_run / name).unlink()
    page = parsed(render(synthetic_run))
    text = " ".join(page.words)
    assert "not finished" in text
    assert "Training loss" in text
    assert "The score and its proof" not in text


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"no recipe\.yaml"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_same_run_gives_the_same_page(synthetic_run: Path):
    first = write_report(synthetic_run).read_bytes()
    assert write_report(synthetic_run).read_bytes() == first


@pytest.mark.slow
def test_a_real_browser_shows_the_page_without_a_complaint(synthetic_run: Path, tmp_path: Path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium on this machine")
    report, picture = write_report(synthetic_run), tmp_path / "page.png"
    quiet = "--disable-gpu --disable-quic --no-first-run --disable-background-networking"
    quiet += " --disable-component-update --disable-sync"
    done = subprocess.run(
        [
            *(browser, "--headless", "--no-sandbox", *quiet.split(), f"--user-data-dir={tmp_path / 'profile'}"),
            *(
                "--enable-logging=stderr",
                "--v=0",
                "--window-size=1100,2600",
                f"--screenshot={picture}",
                report.as_uri(),
            ),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "CONSOLE" not in done.stderr
    assert picture.stat().st_size > 50_000
