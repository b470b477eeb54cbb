"""Whole neurons, blocks, heads and channels: masked equals rebuilt, importances by hand, gains that vanish."""

import pytest
import torch
from torch import Tensor

from compress.examples import model, part, text
from compress.training import loop
from fairway.compress import head_gates as gates
from fairway.compress.curvature import mean_loss, sequence_losses
from fairway.compress.prune import heads, slimming, structured
from fairway.core.errors import ConfigError
from fairway.model.lm import LanguageModel, ModelConfig


def outputs(subject: LanguageModel) -> Tensor:
    with torch.no_grad():
        return subject.logits(subject(torch.cat(text())).hidden_BTD)


@pytest.mark.parametrize("ffn", ["relu2", "swiglu", "geglu"])
def test_the_smaller_model_equals_the_masked_one(ffn: str) -> None:
    config = structured.Config.model_validate({"sparsity": 0.5, "refit": False})
    dense = model(ffn={"kind": ffn}).double()
    smaller = config.build().prune(model(ffn={"kind": ffn}).double(), text()).model
    for name, layer in structured.feed_forwards(dense).items():
        cut = dict(structured.feed_forwards(smaller))[name]
        columns = cut.output.weight
        kept = torch.tensor(
            [
                bool((layer.output.weight[:, j : j + 1] == columns).all(dim=0).any())
                for j in range(layer.output.weight.shape[1])
            ]
        )
        assert int(kept.sum()) == columns.shape[1] < layer.output.weight.shape[1]
        with torch.no_grad():
            layer.output.weight.mul_(kept)
    assert torch.allclose(outputs(dense), outputs(smaller), rtol=0, atol=1e-6)
    rebuilt = ModelConfig.read(smaller.config.plain()).skeleton(smaller.vocabulary).to_empty(device="cpu")
    rebuilt.load_state_dict(smaller.state_dict(), strict=True)
    count = sum(p.numel() for p in smaller.parameters())
    assert count < 0.85 * sum(p.numel() for p in dense.parameters())


def test_the_neurons_that_stay_are_those_that_add_most() -> None:
    dense = model(ffn="relu2")
    smaller = (
        structured.Config.model_validate({"sparsity": 0.5, "refit": False})
        .build()
        .prune(model(ffn="relu2"), text())
        .model
    )
    layer = part(dense, "depth.blocks.0.ffn")
    hidden: list[Tensor] = []
    handle = layer.output.register_forward_pre_hook(lambda _, inputs: hidden.append(inputs[0].detach().flatten(0, 1)))
    outputs(dense)
    handle.remove()
    score = layer.output.weight.detach().norm(dim=0) * torch.cat(hidden).norm(dim=0)
    best = score.topk(len(score) // 2).indices.sort().values
    assert torch.equal(part(smaller, "depth.blocks.0.ffn.input").weight, layer.input.weight[best])


def test_refitting_the_output_maps_brings_the_outputs_nearer() -> None:
    dense = outputs(model(ffn="relu2"))
    errors = []
    for refit in (True, False):
        config = structured.Config.model_validate({"sparsity": 0.6, "refit": refit})
        errors.append(float((outputs(config.build().prune(model(ffn="relu2"), text()).model) - dense).norm()))
    assert errors[0] < errors[1]


def test_the_block_that_goes_is_the_one_missed_least() -> None:
    config = structured.Config.model_validate({"sparsity": 0.3, "unit": "blocks"})
    smaller = config.build().prune(model(depth=3), text()).model
    assert smaller.config.depth.layers == 2
    losses = []
    with torch.no_grad():
        for gone in range(3):
            candidate = model(depth=3)
            del part(candidate, "depth.blocks")[gone]
            losses.append(float(mean_loss(candidate, text())))
        assert float(mean_loss(smaller, text())) == pytest.approx(min(losses), rel=1e-5)


def test_models_without_the_structure_are_refused_with_what_would_work() -> None:
    with pytest.raises(ConfigError, match="no calibration text"):
        structured.Config().build().prune(model(), [])
    with pytest.raises(ConfigError, match=r"model\.mixer\.kind=attention"):
        heads.Config().build().prune(model(mixer={"kind": "gla", "heads": 4}), text())
    with pytest.raises(ConfigError, match="no gains"):
        slimming.Config().build().prune(model(norm={"kind": "rms", "gain": False}), text())


def test_head_importance_is_the_mean_absolute_gradient_of_its_gate() -> None:
    """Checked by a central difference: scaling a head's output columns is moving its gate."""
    subject = model().double()
    layers = gates.attention_layers(subject)
    found = gates.importance(subject, layers, text())
    name, layer = next(iter(layers.items()))
    step = 1e-4
    for head in range(2):
        columns = slice(head * layer.head_width, (head + 1) * layer.head_width)
        sides = []
        for factor in (1 + step, 1 - step):
            with torch.no_grad():
                original = layer.output.weight.clone()
                layer.output.weight[:, columns] *= factor
                sides.append(torch.stack([loss() for loss in sequence_losses(subject, text(), sampled=False)]))
                layer.output.weight.copy_(original)
        by_hand = ((sides[0] - sides[1]) / (2 * step)).abs().mean()
        assert float(found[name][head]) == pytest.approx(float(by_hand), rel=1e-3)


def test_a_head_without_weights_is_a_head_behind_a_closed_gate() -> None:
    subject = model(mixer={"kind": "attention", "heads": 4, "key_groups": 2})
    pruned = (
        heads.Config(sparsity=0.5)
        .build()
        .prune(model(mixer={"kind": "attention", "heads": 4, "key_groups": 2}), text())
    )
    closed = 0
    for name, layer in subject.named_modules():
        if isinstance(layer, heads.Attention):
            kept_D = pruned.kept[f"{name}.output.weight"].all(dim=0)
            closed += int((~kept_D).sum()) // layer.head_width
            with torch.no_grad():
                layer.output.weight.mul_(kept_D)
    assert closed == 4
    assert torch.allclose(outputs(subject), outputs(pruned.model), atol=1e-5)


def test_key_groups_go_only_with_all_their_heads() -> None:
    layer = next(
        m
        for m in model(mixer={"kind": "attention", "heads": 4, "key_groups": 2}).modules()
        if isinstance(m, heads.Attention)
    )
    masks = heads.masks_of("m", layer, torch.tensor([False, True, False, False]))
    width = layer.head_width
    assert masks["m.key.weight"][:width].all()
    assert not masks["m.key.weight"][width:].any()
    assert not masks["m.query.weight"][:width].any()


def test_the_penalty_is_the_sign_of_each_gain() -> None:
    subject = loop(4)
    subject.loss().backward()
    found = slimming.gains(subject.model)
    before = {name: gain.grad.clone() for name, (gain, _) in found.items() if gain.grad is not None}
    assert slimming.Penalty(0.1).gradients(subject) is False
    for name, (gain, _) in found.items():
        assert gain.grad is not None
        assert torch.allclose(gain.grad - before[name], 0.1 * torch.sign(gain.detach()), atol=1e-7)


@pytest.mark.parametrize("offset", [False, True])
def test_slimming_zeroes_the_smallest_gains_and_the_inputs_behind_them(offset: bool) -> None:
    norm = {"kind": "rms", "unit_offset": offset}
    subject = model(norm=norm)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for gain, shift in slimming.gains(subject).values():
            gain.copy_(torch.rand(gain.shape, generator=random) + 0.1 - shift)
    pruned = slimming.Config(sparsity=0.4).build().prune(subject, text())
    found = slimming.gains(pruned.model)
    sizes = torch.cat([(gain + shift).detach().abs() for gain, shift in found.values()])
    assert int((sizes == 0).sum()) == int(0.4 * len(sizes))
    gain, shift = found["blocks.0.ffn_norm"]
    dead = (gain + shift).detach() == 0
    kept = pruned.kept["depth.blocks.0.ffn.input.weight"]
    assert torch.equal(~kept[0], dead)
