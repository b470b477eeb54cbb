"""A teacher beside the loop: every technique trains, resumes bit for bit, and leaves the teacher alone."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fairway.core.budget import Budget
from fairway.core.config import override
from fairway.core.errors import ConfigError, Interrupted
from fairway.core.log import silent
from fairway.core.storage import read_journal
from fairway.data.manifest import Manifest
from fairway.data.tokenizer.bpe import BpeTokenizer
from fairway.data.tokenizer.byte import ByteTokenizer
from fairway.model.lm import LanguageModel, ModelConfig
from fairway.train.loop import Loop, TrainConfig
from fairway.train.parts import Hook, Trainee
from fairway.train.teacher import DISTILL, DistillConfig, Teaching, budget_without, require_same_tokens

MakeLoop = Callable[..., Loop]
SAMPLED = ("loss.prompt=3", "loss.tokens=5", "loss.sequences=2")
CHANGES = {"sequence": SAMPLED, "on_policy": SAMPLED, "minillm": SAMPLED, "features": ("loss.at=[1.0]",)}


def model(manifest: Manifest, width: int, seed: int, context: int = 16) -> LanguageModel:
    config = ModelConfig.read(
        {"width": width, "context": context, "depth": 1, "mixer": {"kind": "attention", "heads": 2}}
    )
    return config.build(manifest.tokenizer.vocabulary, seed)


@pytest.fixture(scope="module", name="teacher")
def _teacher(manifest: Manifest) -> LanguageModel:
    """A teacher that has an opinion of its own."""
    made = model(manifest, 24, 5)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    return made


def settings(*changes: str) -> DistillConfig:
    return DistillConfig.read(override({}, list(changes)))


def teaching(manifest: Manifest, teacher: LanguageModel, *changes: str, train: str = "") -> Teaching:
    """A hook for the loops of this folder's fixture."""
    config = TrainConfig.read(override({}, [train] if train else []))
    student = model(manifest, 16, 1)
    return Teaching(settings(*changes), student, teacher, config, 1, manifest.tokenizer.boundary, {"data": "d"})


def taught(
    make_loop: MakeLoop, manifest: Manifest, teacher: LanguageModel, *changes: str, train: tuple[str, ...] = (), **more
) -> Loop:
    loop = make_loop(*train, **more)
    boundary = manifest.tokenizer.boundary
    hook = Teaching(settings(*changes), loop.model, teacher, loop.config, 1, boundary, {"data": manifest.fingerprint})
    loop.hooks = loop.inner.hooks = [hook, *loop.hooks]
    return loop


def figures(loop: Loop, name: str) -> list[float]:
    return [record[name] for record in read_journal(loop.folder / "metrics.jsonl")]


class Stop(Hook):
    def stepped(self, loop: Trainee) -> dict[str, float]:
        if loop.step == 4:
            loop._stop = True  # pyrefly: ignore
        return {}


@pytest.mark.parametrize("kind", DISTILL.kinds())
def test_every_technique_trains_and_a_stopped_run_goes_on_bit_for_bit(
    make_loop: MakeLoop, manifest: Manifest, teacher: LanguageModel, kind: str
) -> None:
    changes = (f"loss.kind={kind}", *CHANGES.get(kind, ()))
    before = [parameter.clone() for parameter in teacher.parameters()]
    whole = taught(make_loop, manifest, teacher, *changes, folder="whole", steps=8)
    wanted = whole.run(silent)
    plain = make_loop(folder="plain", steps=8).run(silent)
    assert any(not torch.equal(wanted[name], plain[name]) for name in wanted)
    with pytest.raises(Interrupted):
        taught(make_loop, manifest, teacher, *changes, folder="cut", steps=8, hooks=[Stop()]).run(silent)
    rest = taught(make_loop, manifest, teacher, *changes, folder="cut", steps=8, hooks=[Hook()])
    again = rest.run(silent)
    assert all(torch.equal(again[name], wanted[name]) for name in wanted)
    assert figures(rest, "distill/loss") == figures(whole, "distill/loss")
    assert all(torch.equal(old, new) for old, new in zip(before, teacher.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize("kind", ["soft", "reverse_kl", "js"])
def test_a_student_of_the_teacher_alone_comes_closer_to_it(
    make_loop: MakeLoop, manifest: Manifest, teacher: LanguageModel, kind: str
) -> None:
    loop = taught(make_loop, manifest, teacher, f"loss.kind={kind}", "loss.alpha=1", steps=60)
    loop.run(silent)
    losses = figures(loop, "distill/loss")
    assert losses[-1] < 0.5 * losses[0]


def test_regressors_of_hints_learn_beside_the_student(
    make_loop: MakeLoop, manifest: Manifest, teacher: LanguageModel
) -> None:
    loop = taught(make_loop, manifest, teacher, "loss.kind=features", "loss.at=[1.0]", "learning_rate=0.02", steps=40)
    hook = loop.hooks[0]
    assert isinstance(hook, Teaching)
    assert hook.distiller.learned is not None
    before = [parameter.clone() for parameter in hook.distiller.learned.parameters()]
    loop.run(silent)
    assert all(not torch.equal(a, b) for a, b in zip(before, hook.distiller.learned.parameters(), strict=True))
    losses = figures(loop, "distill/loss")
    assert losses[-1] < 0.8 * losses[0]


def test_accumulation_over_micro_batches_is_one_batch(
    make_loop: MakeLoop, manifest: Manifest, teacher: LanguageModel
) -> None:
    runs = [
        taught(make_loop, manifest, teacher, train=("optimizer.kind=sgd", *train), folder=folder)
        for folder, train in (("one", ()), ("many", ("micro_batch=1",)))
    ]
    one, many = (loop.run(silent) for loop in runs)
    assert all(torch.allclose(one[name], many[name], atol=1e-5) for name in one)
    assert figures(runs[0], "distill/loss") == pytest.approx(figures(runs[1], "distill/loss"), rel=1e-4)


def test_a_cache_gives_what_it_stored_and_the_teacher_does_not_run_again(
    make_loop: MakeLoop, manifest: Manifest, teacher: LanguageModel, tmp_path: Path
) -> None:
    changes = (f"cache={tmp_path / 'cache'}", "top_k=6")
    plain = ("optimizer.kind=sgd",)  # changes weights in proportion to gradients, and so to what float16 rounds off
    loop = taught(make_loop, manifest, teacher, *changes, train=plain, folder="first")
    first = loop.run(silent)
    live = taught(make_loop, manifest, teacher, "top_k=6", train=plain, folder="live")
    live.run(silent)
    assert figures(loop, "distill/loss")[:3] == pytest.approx(figures(live, "distill/loss")[:3], rel=2e-3)
    asked: list[int] = []
    handle = teacher.register_forward_pre_hook(lambda *_: asked.append(1))
    second = taught(make_loop, manifest, teacher, *changes, train=plain, folder="second").run(silent)
    handle.remove()
    assert not asked
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (("cache=x", "top_k=4", "loss.kind=minillm"), "needs the teacher itself"),
        (("cache=x",), r"distill\.top_k=32"),
        (("cache=x", "top_k=257"), "fewer than all 257"),
    ],
)
def test_a_cache_that_cannot_serve_is_refused(
    manifest: Manifest, teacher: LanguageModel, changes: tuple[str, ...], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        teaching(manifest, teacher, *changes)


def test_a_teacher_with_too_short_a_context_and_compiled_features_are_refused(
    manifest: Manifest, teacher: LanguageModel
) -> None:
    with pytest.raises(ConfigError, match=r"model\.context=8"):
        teaching(manifest, model(manifest, 16, 2, context=8))
    with pytest.raises(ConfigError, match=r"train\.compile=false"):
        teaching(manifest, teacher, "loss.kind=features", train="compile=true")


def test_a_teacher_of_another_vocabulary_is_refused_with_the_reason() -> None:
    small, other = BpeTokenizer([(97, 98)]), BpeTokenizer([(97, 99)])
    require_same_tokens(small, BpeTokenizer([(97, 98)]), "t.fwy")
    with pytest.raises(ConfigError, match=r"t\.fwy speaks another vocabulary: it has 257 ids and the student 258"):
        require_same_tokens(ByteTokenizer(), small, "t.fwy")
    with pytest.raises(ConfigError, match="id 257 is b'ac' to it and b'ab' to the student"):
        require_same_tokens(other, small, "t.fwy")
    with pytest.raises(ConfigError, match="they cut text differently"):
        require_same_tokens(BpeTokenizer([(97, 98)], digits="none"), small, "t.fwy")


def test_the_student_without_a_teacher_gets_the_teachers_time_too(manifest: Manifest, teacher: LanguageModel) -> None:
    student = model(manifest, 16, 1)
    by_clock = budget_without(settings(), Budget(seconds=60), student, teacher, 4, 42.0)
    assert by_clock.seconds == 102.0
    assert by_clock.steps is None
    config = settings("teacher.steps=10", "teacher.train.batch=8", "teacher.model.context=16")
    ratio = teacher.flops(16) / student.flops(16)
    assert budget_without(config, Budget(steps=30), student, teacher, 4, 42.0).steps == 30 + round(
        30 * ratio / 3 + 10 * 2 * ratio
    )
    there = settings("teacher.path=t.fwy", "teacher.steps=10")
    assert budget_without(there, Budget(steps=30), student, teacher, 4, 42.0).steps == 30 + round(30 * ratio / 3)
