import io

from fairway.cli.console.progress import described, progress
from fairway.core.log import Event


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_figures_are_shown_in_a_fixed_order_with_units():
    shown = described({"mfu": 0.414, "tokens/s": 12345.6, "train/bpb": 1.68, "train/loss": 2.5, "step": 12, "lr": 1.0})
    assert shown == "step 12  loss 2.500  1.680 bpb  12,346 tok/s  MFU 41 %"


def test_tokens_per_second_follow_from_a_step_where_they_are_not_told():
    assert described({"tokens": 4096, "step_seconds": 0.5}) == "8,192 tok/s"


def test_without_a_terminal_a_thousand_ticks_are_a_few_lines():
    stream = io.StringIO()
    with progress(stream) as listener:
        for step in range(1000):
            listener(Event("train", step / 1000, {"train/loss": 3.0}))
        listener(Event("train", 1.0, {"train/loss": 2.0}))
        listener(Event("compress", None, message="Fitting the file."))
    lines = stream.getvalue().splitlines()
    assert lines == ["train:  0 %  loss 3.000", "train:  100 %  loss 2.000", "compress:  Fitting the file."]


def test_a_terminal_gets_a_bar_and_messages_above_it():
    stream = Terminal()
    with progress(stream) as listener:
        listener(Event("train", 0.25, {"train/loss": 3.0}))
        listener(Event("train", 0.5, {"train/loss": 2.5}, message="Saved step 5."))
    shown = stream.getvalue()
    assert "Saved step 5." in shown
    assert "50%" in shown
    assert "loss 2.500" in shown


def test_a_message_with_brackets_is_shown_as_it_is():
    stream = Terminal()
    with progress(stream) as listener:
        listener(Event("sample", 1.0, message="x[0] = [bold]y[/bold]"))
    assert "x[0] = [bold]y[/bold]" in stream.getvalue()


def test_a_message_said_again_and_again_is_one_line():
    for stream in (io.StringIO(), Terminal()):
        with progress(stream) as listener:
            for _ in range(50):
                listener(Event("prepare", 0.1, message="Reading the text."))
        assert stream.getvalue().count("Reading the text.") == 1
