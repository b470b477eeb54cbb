"""Statistics are sums over all tokens and uses, and each layer sees the treated layers before it."""

import copy

import pytest
import torch
from torch import Tensor

from compress.examples import model, part, text
from fairway.compress.calibrate import gather, last_inputs, linear_weights, sequentially
from fairway.compress.parts import Statistics
from fairway.core.errors import ConfigError
from fairway.model.linear import Linear
from fairway.model.lm import LanguageModel


def inputs_of(subject: LanguageModel, wanted: str) -> Tensor:
    """Everything that one linear map sees, from separate forwards of each batch."""
    seen: list[Tensor] = []
    module = next(module for module, name in linear_weights(subject).items() if name == wanted)
    handle = module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().flatten(0, -2)))
    with torch.no_grad():
        for batch_BT in text():
            subject(batch_BT)
    handle.remove()
    return torch.cat(seen).double()


def test_statistics_are_sums_over_all_tokens() -> None:
    subject = model()
    found = gather(subject, text())
    assert set(found) == set(linear_weights(subject).values())
    for name, statistics in found.items():
        x_NC = inputs_of(subject, name)
        assert statistics.tokens == len(x_NC) == 12 * 24
        assert torch.allclose(statistics.gram_CC, x_NC.T @ x_NC, rtol=1e-4, atol=1e-4)
        assert torch.allclose(statistics.squares_C, x_NC.square().sum(dim=0), rtol=1e-4, atol=1e-4)


def test_each_layer_sees_the_treated_layers_before_it() -> None:
    subject = model()
    names: list[str] = []
    grams: dict[str, Tensor] = {}

    def shrink(name: str, statistics: Statistics) -> Tensor:
        names.append(name)
        grams[name] = statistics.gram_CC
        return dict(subject.named_parameters())[name].detach() * 0.5

    sequentially(subject, text(), shrink)
    assert sorted(names) == sorted(linear_weights(subject).values())
    for name in names:
        x_NC = inputs_of(subject, name)
        assert torch.allclose(grams[name], x_NC.T @ x_NC, rtol=1e-3, atol=1e-3), name


def test_leaving_every_layer_gives_what_gathering_gives() -> None:
    subject = model()
    found: dict[str, Tensor] = {}
    sequentially(subject, text(), lambda name, statistics: found.__setitem__(name, statistics.gram_CC))
    for name, statistics in gather(subject, text()).items():
        assert torch.allclose(found[name], statistics.gram_CC, rtol=1e-9)


def test_a_shared_weight_gets_the_sum_over_its_uses_and_is_treated_once() -> None:
    subject = model()
    first, second = part(subject, "depth.blocks.0.ffn.input"), part(subject, "depth.blocks.1.ffn.input")
    assert isinstance(first, Linear)
    tied = copy.deepcopy(subject)
    with torch.no_grad():
        second.weight.copy_(first.weight)
    separate = gather(subject, text())
    expected = [
        separate[name].gram_CC for name in ("depth.blocks.0.ffn.input.weight", "depth.blocks.1.ffn.input.weight")
    ]
    tied.load_state_dict(subject.state_dict())
    part(tied, "depth.blocks.1.ffn").input = part(tied, "depth.blocks.0.ffn.input")
    found = gather(tied, text())
    assert torch.allclose(
        found["depth.blocks.0.ffn.input.weight"].gram_CC, torch.stack(expected).sum(dim=0), rtol=1e-4, atol=1e-3
    )
    assert found["depth.blocks.0.ffn.input.weight"].tokens == 2 * 12 * 24
    treated: list[str] = []
    sequentially(tied, text(), lambda name, _: treated.append(name))
    assert sorted(treated) == sorted(set(treated)) == sorted(linear_weights(tied).values())


def test_calibrating_without_text_is_refused() -> None:
    with pytest.raises(ConfigError, match="no calibration text"):
        gather(model(), [])


def test_no_hook_is_left_behind() -> None:
    subject = model()
    gather(subject, text())
    assert all(not module._forward_pre_hooks for module in subject.modules())


def test_the_last_inputs_are_those_of_the_last_token() -> None:
    subject = model()
    tokens_BT = torch.arange(10)[None]
    found = last_inputs(subject, tokens_BT)
    assert set(found) == set(linear_weights(subject).values())
    expected = {name: statistics.gram_CC for name, statistics in gather(subject, [tokens_BT]).items()}
    earlier = {name: statistics.gram_CC for name, statistics in gather(subject, [tokens_BT[:, :-1]]).items()}
    for name, x_C in found.items():
        torch.testing.assert_close(torch.outer(x_C, x_C).double(), expected[name] - earlier[name], rtol=1e-3, atol=1e-4)
