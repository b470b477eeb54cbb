"""Drawing texts: the law they come from, its probabilities, and where they end."""

import torch

from fairway.core.seed import generator
from fairway.loss.sampling import Voice, draw
from laws.teaching import NEVER, made


def test_texts_are_drawn_as_often_as_the_mixture_says() -> None:
    student, teacher = made(1), made(2)
    rows = 40_000
    prompt = torch.zeros(rows, 1, dtype=torch.int64)
    voices = [Voice(student, 0.7), Voice(teacher, 0.3)]
    drawn = draw(voices, prompt, 2, generator(0, "draw"), NEVER)
    with torch.no_grad():
        for first in range(3):
            start = torch.tensor([[0, first]])
            p = sum(voice.share * voice.model.logits(voice.model(start).hidden_BTD).softmax(-1)[0] for voice in voices)
            assert isinstance(p, torch.Tensor)
            for second in range(3):
                wanted = float(p[0, first] * p[1, second])
                hit = (drawn.drawn_BS == torch.tensor([first, second])).all(1)
                assert abs(float(hit.double().mean()) - wanted) < 4 * (wanted * (1 - wanted) / rows) ** 0.5
                if hit.any():
                    assert abs(float(drawn.log_p_BS[hit][0].sum().exp()) - wanted) < 1e-10


def test_without_temperature_the_likeliest_token_is_taken() -> None:
    student = made(1)
    drawn = draw([Voice(student)], torch.tensor([[2], [0]]), 4, generator(0, "draw"), NEVER, temperature=0)
    logits = student.logits(student(drawn.tokens_BT[:, :-1]).hidden_BTD)
    assert torch.equal(drawn.drawn_BS, logits.argmax(-1))


def test_a_text_is_kept_up_to_its_first_boundary() -> None:
    drawn = draw([Voice(made(1))], torch.zeros(50, 1, dtype=torch.int64), 6, generator(1, "draw"), boundary=2)
    for row, kept in zip(drawn.drawn_BS.tolist(), drawn.kept_BS.tolist(), strict=True):
        end = row.index(2) + 1 if 2 in row else 6
        assert kept == [True] * end + [False] * (6 - end)
    assert not drawn.kept_BS.all()


def test_drawing_leaves_the_model_as_it_was() -> None:
    student = made(1).train()
    draw([Voice(student)], torch.zeros(1, 1, dtype=torch.int64), 2, generator(0, "draw"), NEVER)
    assert student.training
    assert all(parameter.grad is None for parameter in student.parameters())
