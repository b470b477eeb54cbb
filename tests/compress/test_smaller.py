"""Smaller models of every unit: the same outputs as the large one with the rest at zero, to 1e-6, and faster."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from compress.examples import MODEL, model, part, text
from fairway.compress import head_gates as gates
from fairway.compress.calibrate import gather
from fairway.compress.parts import Pruned
from fairway.compress.plan import CompressConfig
from fairway.compress.smaller import rebuilt
from fairway.core.errors import ConfigError
from fairway.model.ffn.moe import MixtureOfExperts
from fairway.model.lm import LanguageModel, ModelConfig
from fairway.model.routing import Routing, token_choice

MAMBA = {"kind": "mamba"}
GROUPED = {"kind": "attention", "heads": 4, "key_groups": 2}
EXPERTS = {"kind": "moe", "experts": 6, "top": 2, "bias_rate": 0.01}


def moved(**changes: Any) -> LanguageModel:
    """A model in float64 all of whose parameters have left their initial values."""
    made = model(**changes).double()
    random = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=random, dtype=torch.float64)
    return made


def outputs(subject: LanguageModel) -> Tensor:
    with torch.no_grad():
        return subject.logits(subject(torch.cat(text())).hidden_BTD)


def pruned(subject: LanguageModel, unit: str, sparsity: float = 0.5, **settings: Any) -> LanguageModel:
    config = CompressConfig.read({"prune": {"kind": "structured", "unit": unit, "sparsity": sparsity, **settings}})
    found: Pruned = config.prune.build().prune(subject, text())
    assert not found.kept
    made = found.model
    again = ModelConfig.read(made.config.plain()).skeleton(made.vocabulary).to_empty(device="cpu").double()
    again.load_state_dict(made.state_dict(), strict=True)
    return again


def places(large: Tensor, small: Tensor, dim: int) -> Tensor:
    """True for the entries along a dimension of the large one that the small one has, given the others are whole."""
    rows = large.movedim(dim, 0).flatten(1)
    return torch.tensor([bool((row == small.movedim(dim, 0).flatten(1)).all(dim=1).any()) for row in rows])


def fewer(dense: LanguageModel, smaller: LanguageModel) -> None:
    count = [sum(parameter.numel() for parameter in each.parameters()) for each in (smaller, dense)]
    assert count[0] < 0.95 * count[1]


@pytest.mark.parametrize(("mixer", "left"), [(GROUPED, 2), ({"kind": "attention", "heads": 4}, 2),
                                             ({"kind": "attention", "heads": 4, "key_groups": 1}, 2)])  # fmt: skip
def test_fewer_heads_compute_what_the_others_behind_closed_gates_do(mixer: dict[str, Any], left: int) -> None:
    dense = moved(mixer=mixer)
    smaller = pruned(moved(mixer=mixer), "heads", refit=False)
    fewer(dense, smaller)
    for name, layer in gates.attention_layers(dense).items():
        small = part(smaller, name)
        assert (small.config.heads, small.head_width) == (left, layer.head_width)
        kept_D = places(layer.query.weight.detach(), small.query.weight.detach(), 0)
        assert int(kept_D.sum()) == left * layer.head_width
        with torch.no_grad():
            layer.output.weight.mul_(kept_D)
    assert torch.allclose(outputs(dense), outputs(smaller), rtol=0, atol=1e-6)


def test_the_key_group_that_goes_is_felt_least() -> None:
    dense = moved(mixer=GROUPED)
    layers = gates.attention_layers(dense)
    scores = gates.importance(dense, layers, text())
    smaller = pruned(moved(mixer=GROUPED), "heads", refit=False)
    for name, layer in layers.items():
        best = int(scores[name].view(2, 2).sum(dim=1).argmax())
        width = layer.head_width
        rows = layer.key.weight.detach()[best * width : (best + 1) * width]
        assert torch.equal(part(smaller, name).key.weight.detach(), rows)


def test_fewer_mamba_channels_compute_what_the_others_at_zero_do() -> None:
    dense = moved(mixer=MAMBA)
    smaller = pruned(moved(mixer=MAMBA), "channels", refit=False)
    fewer(dense, smaller)
    for block, small in zip(part(dense, "depth.blocks"), part(smaller, "depth.blocks"), strict=True):
        kept_E = places(block.mixer.conv_EK.detach(), small.mixer.conv_EK.detach(), 0)
        assert int(kept_E.sum()) == small.mixer.inner == block.mixer.inner // 2
        with torch.no_grad():
            block.mixer.output.weight.mul_(kept_E)
            block.mixer.select.weight.mul_(kept_E)
    assert torch.allclose(outputs(dense), outputs(smaller), rtol=0, atol=1e-6)


def test_the_channels_that_stay_add_most() -> None:
    dense = moved(mixer=MAMBA)
    name = "depth.blocks.0.mixer.output.weight"
    weight = dict(dense.named_parameters())[name].detach()
    score_E = weight.norm(dim=0) * gather(dense, text())[name].squares_C.sqrt()
    smaller = dict(pruned(moved(mixer=MAMBA), "channels", refit=False).named_parameters())
    stay = score_E.topk(len(score_E) // 2).indices.sort().values
    assert torch.equal(smaller[name], weight[:, stay])


def without(experts: MixtureOfExperts, gone_E: Tensor) -> Callable[[Tensor], tuple[Tensor, Routing]]:
    """The router of experts some of which have no chance."""

    def route(x_ND: Tensor) -> tuple[Tensor, Routing]:
        logits_NE = functional.linear(x_ND, experts.router_ED).masked_fill(gone_E, float("-inf"))
        config, scores_NE = experts.config, logits_NE.softmax(-1)
        return logits_NE, token_choice(
            scores_NE, config.chosen, bias_E=experts.bias_E, renormalise=config.renormalise
        )  # fmt: skip

    return route


@pytest.mark.parametrize("fine", [1, 2])
def test_fewer_experts_compute_what_no_token_choosing_the_others_does(
    fine: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**EXPERTS, "fine": fine}
    dense = moved(ffn=settings)
    smaller = pruned(moved(ffn=settings), "experts")
    fewer(dense, smaller)
    for block, small in zip(part(dense, "depth.blocks"), part(smaller, "depth.blocks"), strict=True):
        kept_E = places(block.ffn.router_ED.detach(), small.ffn.router_ED.detach(), 0)
        assert int(kept_E.sum()) == small.ffn.config.routed == 3 * fine
        block.ffn.bias_E.data.masked_fill_(~kept_E, float("-inf"))
        monkeypatch.setattr(block.ffn, "_route", without(block.ffn, ~kept_E), raising=True)
    assert torch.allclose(outputs(dense), outputs(smaller), rtol=0, atol=1e-6)


def test_the_experts_that_go_are_chosen_least() -> None:
    dense = moved(ffn=EXPERTS)
    loads = [dense.eval()(tokens_BT).aux.statistics for tokens_BT in text()]
    smaller = pruned(moved(ffn=EXPERTS), "experts")
    for index in range(2):
        name = f"depth.blocks.{index}.ffn"
        total = sum(found[f"{name}.load"] * t.numel() for found, t in zip(loads, text(), strict=True))
        assert isinstance(total, Tensor)
        kept_E = places(part(dense, name).router_ED.detach(), part(smaller, name).router_ED.detach(), 0)
        assert total[kept_E].min() >= total[~kept_E].max()


@pytest.mark.parametrize("norm", [{"kind": "rms"}, {"kind": "rms", "unit_offset": True}, {"kind": "dyt"}])
@pytest.mark.parametrize("mixer", [{"kind": "attention", "heads": 4, "qk_norm": False}, MAMBA])
def test_a_narrower_stream_computes_what_the_wide_one_with_features_at_zero_does(
    norm: dict[str, Any], mixer: dict[str, Any]
) -> None:
    settings = {"norm": norm, "mixer": mixer, "ffn": {"kind": "swiglu"}}
    if norm["kind"] == "dyt":
        settings["embedding"] = {"scale": "learned"}
    dense = moved(**settings)
    smaller = pruned(moved(**settings), "width", 0.25)
    fewer(dense, smaller)
    assert smaller.config.width == 24
    kept_D = places(part(dense, "embedding").weight.detach(), part(smaller, "embedding").weight.detach(), 1)
    assert int(kept_D.sum()) == 24
    with torch.no_grad():
        part(dense, "embedding").weight.mul_(kept_D)
        for block in part(dense, "depth.blocks"):
            block.mixer.output.weight.mul_(kept_D[:, None])
            block.ffn.output.weight.mul_(kept_D[:, None])
        for name, parameter in dense.named_parameters():
            if name.endswith("norm.bias_D"):
                parameter.mul_(kept_D)
    assert torch.allclose(outputs(dense), outputs(smaller), rtol=0, atol=1e-6)


def test_refitting_brings_outputs_nearer() -> None:
    for unit, mixer in (("heads", GROUPED), ("channels", MAMBA)):
        whole = outputs(moved(mixer=mixer))
        errors = [
            float((outputs(pruned(moved(mixer=mixer), unit, refit=refit)) - whole).norm()) for refit in (True, False)
        ]
        assert errors[0] < errors[1], unit


def test_the_smaller_model_does_less_work() -> None:
    for unit, changes in (("heads", {}), ("channels", {"mixer": MAMBA}), ("width", {}), ("neurons", {})):
        dense = moved(**changes)
        assert pruned(moved(**changes), unit).flops(24) < 0.85 * dense.flops(24), unit
    assert pruned(moved(mixer=GROUPED), "heads").state_bytes(24) < 0.6 * moved(mixer=GROUPED).state_bytes(24)


def test_models_without_the_unit_are_refused_with_what_would_work() -> None:
    for unit, changes, word in (
        ("channels", {}, r"model\.mixer\.kind=mamba"),
        ("experts", {}, r"model\.ffn\.kind=moe"),
        ("heads", {"mixer": MAMBA}, r"model\.mixer\.kind=attention"),
        ("width", {"norm": "layer"}, "norms rms"),
        ("width", {"depth": {"kind": "shared", "layers": 2}}, "plain"),
    ):
        with pytest.raises(ConfigError, match=word):
            pruned(moved(**changes), unit)


def test_a_size_that_no_rule_explains_is_refused() -> None:
    narrow = ModelConfig.read({**MODEL, "width": 24})
    with pytest.raises(ConfigError, match="cannot be cut"):
        rebuilt(moved(), narrow, {})
