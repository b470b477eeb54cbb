"""Dynamic computation on the CPU: experts, mixture of depths and loops beside what they replace.

    python benchmarks/architecture_speed.py [--threads 1] [--rounds 9] [--tiny]

Experts: training steps of one block, 8 experts top 2, beside the dense block of equal active FLOPs (goal: 0.70 of
its tokens/s); one mixture layer, forward and backward, beside the Mixtral block of transformers with the same weights
(goal: 2 times), once outputs and gradients agree. The limit of that ratio is what a layer would reach that does nothing
but its products, at the rate of a large one: a goal above it is out of reach. Ours in bfloat16, as Fairway trains,
beside Mixtral's in float32, as installed, is a comparison of different formats, and its difference is shown. Depth:
whole training steps with 12.5 % of the tokens in every other block beside the dense model at context 512 (goal: 0.65
of its time). Loops: parameters and artifact bytes of one block applied four times beside the same block applied once,
from the data of `fairway inspect` (goal: none more).
"""

import argparse
import datetime
import sys
import tempfile
import types
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))

import pairs

from fairway.compress.fit import compress_model
from fairway.compress.plan import CompressConfig
from fairway.core.budget import Budget
from fairway.core.config import override
from fairway.core.device import keep_freed_memory, use_threads
from fairway.core.probe import machine, versions
from fairway.core.storage import write_json
from fairway.data.batches import Batch
from fairway.data.tokenizer.byte import ByteTokenizer
from fairway.model.lm import FFN, ModelConfig
from fairway.model.parts import initialise
from fairway.report.anatomy import anatomy
from fairway.train.loop import Loop, Moment, TrainConfig
from fairway.train.meter import Meter
from report import RESULTS

WIDTH, HEADS, VOCABULARY = 192, 6, 1024
MIXED = "experts in bf16 against Mixtral's layer in float32"
GOALS = {
    "experts against the dense block": (0.70, "tokens/s over the dense block's, at least"),
    "experts against Mixtral's layer": (2.0, "tokens/s over the Mixtral block's, at least"),
    "experts against Mixtral's layer, bf16": (2.0, "tokens/s over the Mixtral block's, at least"),
    MIXED: (2.0, "different formats; tokens/s over the Mixtral block's, at least"),
    "mixture of depths": (0.65, "step time over the dense model's, at most"),
}
TOLERANCES = {"": 1e-4, ", bf16": 3e-2, MIXED: 3e-2}
"""How far our layer and Mixtral's may differ: both in float32, both in bfloat16, or ours alone in the latter."""
SIDE, PRODUCTS = 1024, 4
EXPERTS = {"kind": "moe", "experts": 8, "top": 2, "ratio": 2.0}

Prepared = tuple[Callable[[], None], dict[str, Any]]


def training(model: dict[str, Any], batch: int, context: int) -> Prepared:
    """Steps of the real loop over random tokens."""
    config = ModelConfig.read(
        {"width": WIDTH, "context": context, "mixer": {"kind": "attention", "heads": HEADS}, **model}
    )
    built = config.build(VOCABULARY, seed=0)
    train = TrainConfig.read(override({"batch": batch}, ["optimizer.kind=adamw"]))
    source = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, VOCABULARY, (batch, context + 1), generator=source)
    batches = types.SimpleNamespace(
        rows=lambda first, count, context: Batch(tokens, torch.zeros_like(tokens, dtype=torch.bool))  # noqa: ARG005
    )
    loop = Loop(built, batches, train, Budget(steps=10**9), 0, Path(), {}, Meter(1.0, built.flops(context)))
    built.train()

    def run() -> None:
        loop.advance(Moment(0.5, 1e9, done=False, save=False, stop=False))

    return run, {"tokens": batch * context, "flops": built.flops(context)}


def layers() -> tuple[torch.nn.Module, torch.nn.Module]:
    """Our mixture layer and that of transformers, with the same weights."""
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

    ours = FFN.config("moe").model_validate({**EXPERTS, "expert": "swiglu", "balance": 0.0}).build(WIDTH)
    initialise(ours, 0)
    torch.nn.init.normal_(ours.output_EDF, std=ours.hidden**-0.5, generator=torch.Generator().manual_seed(1))
    config = MixtralConfig(
        hidden_size=WIDTH, intermediate_size=ours.hidden, num_local_experts=8, num_experts_per_tok=2,
        router_jitter_noise=0.0,
    )  # fmt: skip
    config._experts_implementation = "grouped_mm" if torch.cuda.is_available() else "eager"
    theirs = MixtralSparseMoeBlock(config)
    with torch.no_grad():
        theirs.gate.weight.copy_(ours.router_ED)
        theirs.experts.gate_up_proj.copy_(ours.input_EJD)
        theirs.experts.down_proj.copy_(ours.output_EDF)
    return ours, theirs


def products(half: bool) -> Prepared:
    """Square matrix products large enough to run at the machine's rate."""
    x = torch.ones(SIDE, SIDE, dtype=torch.bfloat16 if half else torch.float32)

    def run() -> None:
        for _ in range(PRODUCTS):
            torch.mm(x, x)

    return run, {"tokens": 0, "flops": PRODUCTS * 2.0 * SIDE**3}


def agreement(ours: bool, theirs: bool, batch: int = 2, context: int = 64) -> float:
    """Largest relative difference of outputs and of the input's gradients between both layers, in bfloat16 or not."""
    results = []
    for layer, half in zip(layers(), (ours, theirs), strict=True):
        x_BTD = inputs(batch, context)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            y_BTD = output_of(layer, x_BTD)
        y_BTD.float().square().sum().backward()
        assert x_BTD.grad is not None
        results.append((y_BTD.detach().float(), x_BTD.grad))
    pairs_of = zip(*results, strict=True)
    return max(float((one - other).abs().max() / other.abs().max()) for one, other in pairs_of)


def inputs(batch: int, context: int) -> Tensor:
    return torch.randn(batch, context, WIDTH, generator=torch.Generator().manual_seed(2)).requires_grad_()


def output_of(layer: torch.nn.Module, x_BTD: Tensor) -> Tensor:
    result = layer(x_BTD)
    return result[0] if isinstance(result, tuple) else result


def one_layer(number: int, half: bool, batch: int, context: int) -> Prepared:
    """Forward and backward of one of the two layers, in float32 or under bfloat16 autocast."""
    layer, x_BTD = layers()[number], inputs(batch, context)

    def run() -> None:
        layer.zero_grad(set_to_none=True)
        x_BTD.grad = None
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            y_BTD = output_of(layer, x_BTD)
        y_BTD.float().sum().backward()

    per_token = 3.0 * FFN.config("moe").model_validate({**EXPERTS, "expert": "swiglu"}).build(WIDTH).flops(context)
    return run, {"tokens": batch * context, "flops": batch * context * per_token}


def contenders(tiny: bool) -> dict[str, Callable[[], Prepared]]:
    """Everything that is timed, by name."""
    batch, context, depth = (2, 64, 2) if tiny else (16, 256, 6)
    long = 64 if tiny else 512
    skipping = {"kind": "mixture_of_depths", "layers": depth, "capacity": 0.125, "interval": 2}
    return {
        "dense block": lambda: training({"depth": 1, "ffn": {"kind": "relu2"}}, batch, context),
        "experts block": lambda: training({"depth": 1, "ffn": EXPERTS}, batch, context),
        "our layer": lambda: one_layer(0, False, batch, context),
        "Mixtral's layer": lambda: one_layer(1, False, batch, context),
        "Mixtral's layer as installed": lambda: one_layer(1, False, batch, context),
        "our layer, bf16": lambda: one_layer(0, True, batch, context),
        "Mixtral's layer, bf16": lambda: one_layer(1, True, batch, context),
        "Mixtral's layer, bf16 as installed": lambda: one_layer(1, True, batch, context),
        "products": lambda: products(False),
        "products, bf16": lambda: products(True),
        "dense depth": lambda: training({"depth": depth}, max(1, batch // 2), long),
        "mixture of depths": lambda: training({"depth": skipping}, max(1, batch // 2), long),
    }


def loops() -> dict[str, dict[str, Any]]:
    """Parameters and bytes of an artifact of one block applied once and four times, by what `fairway inspect` reads."""
    found: dict[str, dict[str, Any]] = {}
    weights: list[Tensor] = []
    for name, depth in (
        ("applied once", {"kind": "plain", "layers": 1}),
        ("applied four times", {"kind": "recurrent", "layers": 4, "step": "none"}),
    ):
        model = ModelConfig.read({"width": WIDTH, "mixer": {"kind": "attention", "heads": HEADS}, "depth": depth})
        built = model.build(ByteTokenizer().vocabulary, seed=0)
        with torch.no_grad():
            for parameter, value in zip(built.parameters(), weights, strict=False):
                parameter.copy_(value)
        weights = weights or list(built.parameters())
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.fwy"
            tokenizer = ByteTokenizer()
            compress_model(built, tokenizer.kind, tokenizer.save(), CompressConfig(), 10**7, path, {})
            seen = anatomy(path)
        header = seen.groups["header, checksum"]
        found[name] = {"parameters": seen.parameters, "weights": seen.bytes - header, "header": header}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tiny", action="store_true", help="small shapes, to see that it works; nothing is kept")
    parser.add_argument("--contend", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    named = contenders(chosen.tiny)
    if chosen.contend:
        if not chosen.contend.endswith("as installed"):
            keep_freed_memory()
            use_threads(chosen.threads)
        pairs.serve(named[chosen.contend])
        return
    differences = {"": agreement(False, False), ", bf16": agreement(True, True), MIXED: agreement(True, False)}
    base = [__file__, "--threads", str(chosen.threads), *(["--tiny"] if chosen.tiny else []), "--contend"]
    measured = pairs.measure({name: [*base, name] for name in named}, chosen.rounds, chosen.threads)
    record = tell(measured, differences, loops())
    if not chosen.tiny:
        write_json(RESULTS / f"architecture_speed_{chosen.threads}t.json", record)


def tell(
    measured: dict[str, pairs.Measured], differences: dict[str, float], looped: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """Prints the table and returns what is kept of it; no ratio where results differ."""
    speed = {name: value.facts["tokens"] / value.wall for name, value in measured.items()}
    forms = ("", ", bf16")
    mixtral = {
        form: max(speed[f"Mixtral's layer{form}"], speed[f"Mixtral's layer{form} as installed"]) for form in forms
    }
    ratios = {
        "experts against the dense block": speed["experts block"] / speed["dense block"],
        **{f"experts against Mixtral's layer{form}": speed[f"our layer{form}"] / mixtral[form] for form in forms},
        MIXED: speed["our layer, bf16"] / speed["Mixtral's layer as installed"],
        "mixture of depths": measured["mixture of depths"].wall / measured["dense depth"].wall,
    }
    right = {form: differences[form] < allowed for form, allowed in TOLERANCES.items()}
    ratios = {name: ratio if right.get(_form(name), True) else None for name, ratio in ratios.items()}
    limits = {form: _limit(measured, form) / mixtral[form] for form in forms}
    for name, value in measured.items():
        flops = value.facts["flops"] / value.wall / 1e9 if "flops" in value.facts else 0.0
        rate = f"{speed[name]:>12,.0f} tokens/s" if speed[name] else f"{flops:>12,.0f} GFLOP/s "
        print(f"  {name:<36}{1000 * value.wall:>10.1f} ms{rate}  +-{100 * value.spread:.1f} %")
    for form, difference in differences.items():
        both = f"{form}:" if form == MIXED else f"our layer and Mixtral's{form}"
        print(f"  {both} differ by {difference:.1e} of the largest number")
    for form, limit in limits.items():
        print(f"  limit of experts against Mixtral's layer{form}: {limit:.2f} (the bare products at the measured rate)")
    for name, ratio in ratios.items():
        goal, meaning = GOALS[name]
        print(f"  {name}: {'not shown, results differ' if ratio is None else f'{ratio:.2f}'} ({meaning} {goal})")
    for name, facts in looped.items():
        print(f"  {name}: {facts['parameters']:,} parameters, {facts['weights']:,.0f} bytes beside the header")
    return {
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "versions": versions(),
        "measured": {name: asdict(value) for name, value in measured.items()},
        "ratios": ratios,
        "limits": limits,
        "goals": {name: goal for name, (goal, _) in GOALS.items()},
        "differences": differences,
        "loops": looped,
    }


def _form(name: str) -> str:
    """Which agreement a ratio rests on; its own name if on none."""
    start = "experts against Mixtral's layer"
    return name.removeprefix(start) if name.startswith(start) else name


def _limit(measured: dict[str, pairs.Measured], form: str) -> float:
    """Tokens a second of a layer whose products run at the rate of large ones and that does nothing else."""
    large, layer = measured[f"products{form}"], measured[f"our layer{form}"]
    return layer.facts["tokens"] * large.facts["flops"] / large.wall / layer.facts["flops"]


if __name__ == "__main__":
    main()
