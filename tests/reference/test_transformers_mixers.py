"""Mamba, Mamba-2 and RWKV-4 against the slow paths of `transformers`, and `mambapy`, with the same weights."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from fairway.core.seed import generator
from fairway.model.mixer.mamba import Config as MambaConfig
from fairway.model.mixer.mamba2 import Config as Mamba2Config
from fairway.model.mixer.rwkv4 import Config as Rwkv4Config
from fairway.model.parts import Mixer, Site, initialise
from fairway.ops.wkv4.chunk import wkv4

transformers = pytest.importorskip("transformers")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformers.models.mamba import modeling_mamba as theirs_mamba
    from transformers.models.mamba2 import modeling_mamba2 as theirs_mamba2
    from transformers.models.rwkv import modeling_rwkv as theirs_rwkv

WIDTH, TIME = 32, 45


def perturbed(mixer: Mixer) -> Mixer:
    """An initialised mixer whose every parameter differs from its initial value."""
    initialise(mixer, 0)
    with torch.no_grad():
        for name, parameter in mixer.named_parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator(2, name))
    return mixer


def copied(theirs: torch.nn.Module, values: dict[str, Tensor]) -> torch.nn.Module:
    """Their module with our values; every one of its parameters must be named."""
    own = dict(theirs.named_parameters())
    assert set(own) == set(values)
    with torch.no_grad():
        for name, value in values.items():
            own[name].copy_(value.reshape(own[name].shape))
    return theirs.eval()


def inputs() -> Tensor:
    return torch.randn(2, TIME, WIDTH, generator=generator(0, "reference"))


def same(ours: Mixer, theirs: Any) -> None:
    """Equal outputs, and equal gradients with respect to the input."""
    first, second = inputs().requires_grad_(), inputs().requires_grad_()
    our_y, their_y = ours(first)[0], theirs(second)
    their_y = their_y[0] if isinstance(their_y, tuple) else their_y
    torch.testing.assert_close(our_y, their_y, rtol=1e-4, atol=2e-5)
    our_y.square().sum().backward()
    their_y.square().sum().backward()
    assert first.grad is not None
    torch.testing.assert_close(first.grad, second.grad, rtol=1e-3, atol=1e-4)


def mamba_values(ours: Any) -> dict[str, Tensor]:
    """The weights under the names that the published code gives them."""
    return {
        "A_log": ours.A_log_EN,
        "D": ours.skip_E,
        "conv1d.weight": ours.conv_EK,
        "conv1d.bias": ours.conv_bias_E,
        "in_proj.weight": ours.input.weight,
        "x_proj.weight": ours.select.weight,
        "dt_proj.weight": ours.step_ER,
        "dt_proj.bias": ours.step_bias_E,
        "out_proj.weight": ours.output.weight,
    }


def test_mamba_is_that_of_transformers() -> None:
    ours: Any = perturbed(MambaConfig().build(WIDTH))
    config = theirs_mamba.MambaConfig(hidden_size=WIDTH, state_size=16, expand=2, num_hidden_layers=1)
    same(ours, copied(theirs_mamba.MambaMixer(config, 0), mamba_values(ours)))


def test_mamba_is_that_of_mambapy() -> None:
    mambapy = pytest.importorskip("mambapy.mamba")
    ours: Any = perturbed(MambaConfig().build(WIDTH))
    block = mambapy.MambaBlock(mambapy.MambaConfig(d_model=WIDTH, n_layers=1))
    same(ours, copied(block, mamba_values(ours)))


@pytest.mark.parametrize("groups", [1, 2])
def test_mamba2_is_that_of_transformers(groups: int) -> None:
    ours: Any = perturbed(Mamba2Config(heads=4, groups=groups, states=16).build(WIDTH))
    config = theirs_mamba2.Mamba2Config(
        hidden_size=WIDTH,
        num_heads=4,
        head_dim=16,
        state_size=16,
        n_groups=groups,
        expand=2,
        chunk_size=16,
        num_hidden_layers=1,
    )
    values = {
        "A_log": ours.A_log_H,
        "D": ours.skip_H,
        "dt_bias": ours.step_bias_H,
        "conv1d.weight": ours.conv_FK,
        "conv1d.bias": ours.conv_bias_F,
        "in_proj.weight": ours.input.weight,
        "norm.weight": ours.gain_E,
        "out_proj.weight": ours.output.weight,
    }
    same(ours, copied(theirs_mamba2.Mamba2Mixer(config, 0), values))


def test_rwkv4_is_that_of_transformers() -> None:
    ours: Any = perturbed(Rwkv4Config().build(WIDTH, Site(1, 4)))
    config = theirs_rwkv.RwkvConfig(hidden_size=WIDTH, num_hidden_layers=4, attention_hidden_size=WIDTH)
    values = {
        "time_decay": ours.w_raw_D,
        "time_first": ours.bonus_D,
        "time_mix_key": ours.share_key_D,
        "time_mix_value": ours.share_value_D,
        "time_mix_receptance": ours.share_receptance_D,
        "key.weight": ours.key.weight,
        "value.weight": ours.value.weight,
        "receptance.weight": ours.receptance.weight,
        "output.weight": ours.output.weight,
    }
    theirs = copied(theirs_rwkv.RwkvSelfAttention(config, 1), values)
    with torch.no_grad():
        torch.testing.assert_close(ours(inputs())[0], theirs(inputs())[0], rtol=1e-4, atol=1e-5)


def test_the_carried_triple_of_wkv_is_that_of_transformers() -> None:
    raw, bonus = torch.randn(2, WIDTH, generator=generator(0, "wkv")).unbind(0)
    key, value = 3 * inputs(), inputs().flip(1)
    _, their_state = theirs_rwkv.rwkv_linear_attention_cpu(raw, bonus, key[:, :20], value[:, :20], return_state=True)
    theirs, their_state = theirs_rwkv.rwkv_linear_attention_cpu(
        raw, bonus, key[:, 20:], value[:, 20:], their_state, True
    )
    _, state = wkv4(key[:, :20], value[:, :20], raw.exp(), bonus)
    output, state = wkv4(key[:, 20:], value[:, 20:], raw.exp(), bonus, state)
    torch.testing.assert_close(output, theirs, rtol=1e-4, atol=1e-5)
    assert their_state is not None
    for one, other in zip(state, their_state, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_initial_values_of_mamba_and_rwkv4_are_the_published_ones() -> None:
    mamba: Any = MambaConfig().build(WIDTH)
    initialise(mamba, 0)
    theirs = theirs_mamba.MambaMixer(theirs_mamba.MambaConfig(hidden_size=WIDTH, num_hidden_layers=1), 0)
    torch.testing.assert_close(mamba.A_log_EN, theirs.A_log)
    torch.testing.assert_close(mamba.skip_E, theirs.D)
    step = torch.nn.functional.softplus(mamba.step_bias_E)
    assert step.min() >= 0.00099
    assert step.max() <= 0.1001
    assert mamba.step_ER.abs().max() <= mamba.rank**-0.5
    model = theirs_rwkv.RwkvModel(theirs_rwkv.RwkvConfig(hidden_size=WIDTH, num_hidden_layers=4, vocab_size=10))
    for layer in range(4):
        rwkv: Any = Rwkv4Config().build(WIDTH, Site(layer, 4))
        initialise(rwkv, 0)
        theirs: Any = model.blocks[layer].attention
        torch.testing.assert_close(rwkv.w_raw_D, theirs.time_decay, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(rwkv.share_key_D, theirs.time_mix_key.flatten())
        torch.testing.assert_close(rwkv.share_value_D, theirs.time_mix_value.flatten())
        torch.testing.assert_close(rwkv.share_receptance_D, theirs.time_mix_receptance.flatten())
