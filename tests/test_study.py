"""Studies over widths: the check tells parametrisations apart, the sweep finds each width's best rate."""

import math
from pathlib import Path
from xml.etree import ElementTree

import pytest

from fairway import study
from fairway.core.config import override, read_yaml
from fairway.core.errors import ConfigError
from fairway.core.log import silent
from fairway.data.manifest import Manifest
from fairway.optim.widths import at_width
from fairway.run import Recipe, Run
from fairway.study import CoordinateCheck, Transfer
from fairway.train.loop import Loop

TINY = Path(__file__).parents[1] / "recipes" / "tiny.yaml"
SMALL = [
    "data.max_bytes=200kB",
    "train.batch=4",
    "model.context=32",
    "train.optimizer.kind=adamw",
    "model.mixer.heads=4",
]


def recipe(*assignments: str) -> Recipe:
    return Recipe.read(override(read_yaml(TINY), [*SMALL, *assignments]))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return Run(recipe(), tmp_path_factory.mktemp("study")).prepare(silent)


def test_activations_change_alike_at_every_width_under_mup_alone(prepared: Manifest) -> None:
    found = study.coordinate_check(recipe("train.optimizer.lr=0.01"), prepared, (32, 64, 128), 4, 2, silent)
    assert list(found.changes["mup"]) == ["embedding", "layer 1", "layer 2", "logits"]
    assert abs(found.worst("mup")) < 0.3
    assert found.worst("standard") > 0.6
    for layer in found.changes["mup"]:
        assert found.changes["mup"][layer][0] == pytest.approx(found.changes["standard"][layer][0], rel=1e-6)


def test_slopes_under_muon_are_within_a_twentieth_in_mup_alone(prepared: Manifest) -> None:
    found = study.coordinate_check(recipe("train.optimizer.kind=muon"), prepared, (64, 128, 256), 4, 2, silent)
    assert abs(found.worst("mup")) < 0.05
    assert found.worst("standard") > 0.3


def test_slopes_under_adam_near_its_best_rate_are_within_a_twentieth_in_mup_alone(prepared: Manifest) -> None:
    found = study.coordinate_check(recipe("train.optimizer.lr=0.003"), prepared, (64, 128, 256), 4, 2, silent)
    assert abs(found.worst("mup")) < 0.05
    assert min(found.slopes["standard"][layer] for layer in ("layer 1", "layer 2", "logits")) > 0.5


def test_a_sweep_finds_the_best_rate_of_each_width(prepared: Manifest) -> None:
    chosen = recipe("train.optimizer.lr=0.004")
    found = study.transfer(chosen, prepared, (16, 32), (2**-8, 1.0, 2**9), 12, 1, silent)
    assert found.best == {"standard": [1.0, 1.0], "mup": [1.0, 1.0]}
    assert found.shift("mup") == 0.0
    losses = found.losses["standard"][0]
    assert losses[1] < losses[0] < 6
    assert found.losses["standard"][0] == found.losses["mup"][0]


def test_a_stopped_sweep_goes_on_and_another_recipe_begins_anew(
    prepared: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[Path] = []
    final_loss = study._final_loss

    def counted(loop: Loop) -> float:
        if len(runs) == 3:
            raise KeyboardInterrupt
        runs.append(loop.folder)
        return math.inf if len(runs) == 1 else final_loss(loop)

    def sweep(lr: float, seeds: int = 1) -> Transfer:
        chosen = recipe(f"train.optimizer.lr={lr}")
        return study.transfer(chosen, prepared, (16, 32), (0.5, 1.0), 4, seeds, silent, tmp_path / "transfer.jsonl")

    monkeypatch.setattr(study, "_final_loss", counted)
    with pytest.raises(KeyboardInterrupt):
        sweep(0.004)
    monkeypatch.setattr(study, "_final_loss", lambda loop: runs.append(loop.folder) or final_loss(loop))
    found = sweep(0.004)
    assert len(runs) == 6
    assert found.losses["standard"][0] == [math.inf, found.losses["mup"][0][1]]
    assert sweep(0.004) == found
    assert len(runs) == 6
    assert sweep(0.004, seeds=2).losses != found.losses
    assert len(runs) == 12
    sweep(0.008)
    assert len(runs) == 18


def test_the_slope_is_the_exponent_of_the_width() -> None:
    widths = (32, 64, 128, 256)
    assert study.slope(widths, [3 * width**0.7 for width in widths]) == pytest.approx(0.7)
    assert study.slope(widths, [0.0] * 4) == 0.0
    assert math.isnan(study.slope(widths, [0.0, 1.0, 1.0, 1.0]))


def test_the_shift_is_counted_in_powers_of_two() -> None:
    found = Transfer((16, 32), (0.5, 1, 2, 4), {}, {"mup": [2, 2], "standard": [4, 0.5]})
    assert (found.shift("mup"), found.shift("standard")) == (0.0, 3.0)
    assert (found.at_the_edge("mup"), found.at_the_edge("standard")) == ([], [16, 32])


def test_plots_are_files_that_a_viewer_can_show() -> None:
    changes = {"layer 1": [1.0, 2.0, 4.0], "logits": [0.5, 0.5, 0.0]}
    check = CoordinateCheck((16, 32, 64), 4, {"mup": changes}, {"mup": {}})
    sweep = Transfer((16, 32), (0.5, 1.0), {"mup": [[3.0, 2.0], [2.0, math.inf]]}, {"mup": [1.0, 0.5]})
    for svg in (study.draw_check(check, "mup"), study.draw_transfer(sweep, "mup")):
        root = ElementTree.fromstring(svg)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert len(root.findall(".//{http://www.w3.org/2000/svg}path[@class='line line0']")) == 1
        assert root.find("{http://www.w3.org/2000/svg}style") is not None


def test_heads_grow_with_the_width_and_keep_their_size() -> None:
    config = recipe("model.mixer.key_groups=2").model
    wide = at_width(config, 128).mixer[0].plain()
    assert (config.width, wide["heads"], wide["key_groups"]) == (64, 8, 4)
    with pytest.raises(ConfigError, match="multiples of 32"):
        at_width(config, 80)


@pytest.mark.parametrize("text", ["", "3", "a,b", "4,2", "2,2"])
def test_numbers_that_do_not_rise_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="rising whole numbers"):
        study.whole_numbers("--widths", text)
    assert study.whole_numbers("--factors", "-4,4") == [-4, 4]


def test_a_run_at_a_tuned_width_trains_and_is_read_back_in_mup(tmp_path: Path) -> None:
    made = Run(recipe("train.tuned_width=32", "budget.steps=3"), tmp_path / "run")
    made.train(silent)
    loop = made.training(made.prepare(silent))
    rates = {group.name: group.lr for group in loop.optimizer.groups()}
    assert rates["matrix"] == pytest.approx(rates["embedding"] / 2)
    model, checkpoint = made.trained(silent)
    assert checkpoint.step == 3
    assert model.config.head.scale == pytest.approx(0.5)
