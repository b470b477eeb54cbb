"""Bits per byte at equal bytes and seconds: the default recipe beside a plain GPT with tuned AdamW, int8 and zlib.

`python benchmarks/quality.py --text stdlib --seconds 180 --seeds 3`. Both arms see the same prepared text and
tokenizer, train for the same seconds with the same threads, and must fit the same cap; the peer's learning rate is
the best of a grid at a seed of its own. Both are scored by Fairway's evaluator with the same windows, the peer from
its decoded int8 weights.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))

from peers.plain_gpt import PlainGpt

from fairway.core.device import keep_freed_memory, use_threads
from fairway.core.log import silent
from fairway.core.probe import machine, versions
from fairway.core.storage import write_json
from fairway.data.batches import Batches
from fairway.data.manifest import Manifest
from fairway.evaluate.bpb import EvaluateConfig, judge
from fairway.run import Run, load_recipe
from report import RESULTS

CAP = 500_000
PEER = {"width": 96, "layers": 3, "heads": 3, "context": 256}
RATES = (1e-3, 2e-3, 4e-3)
TUNING_SEED = 1_000


class PeerPredictor:
    """The plain GPT as the evaluator sees a predictor."""

    def __init__(self, model: PlainGpt) -> None:
        self.model = model.eval()
        self.vocabulary = model.tokens.num_embeddings

    @torch.inference_mode()
    def predict(self, inputs_BT: Tensor, first: int) -> Tensor:
        return self.model(inputs_BT)[:, first:].log_softmax(-1)


def train_peer(manifest: Manifest, rate: float, seconds: float, seed: int) -> PlainGpt:
    """AdamW with warm-up and cosine decay by the clock, bfloat16 autocast, batches of 16 x 256."""
    torch.manual_seed(seed)
    model = PlainGpt(manifest.tokenizer.vocabulary, **PEER)
    decayed = [parameter for parameter in model.parameters() if parameter.ndim == 2]
    rest = [parameter for parameter in model.parameters() if parameter.ndim != 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), fused=True)
    batches, start, step, longest = Batches(manifest, seed), time.monotonic(), 0, 0.0
    while (elapsed := time.monotonic() - start) + longest < seconds:
        progress = elapsed / seconds
        factor = min(1.0, progress / 0.05) * (0.1 + 0.45 * (1 + math.cos(math.pi * progress)))
        for group in optimizer.param_groups:
            group["lr"] = rate * factor
        tokens = batches.at(step, 16, PEER["context"]).tokens_BT
        with torch.autocast("cpu", torch.bfloat16):
            loss = model.loss(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        longest = max(longest, time.monotonic() - start - elapsed) if step else 0.0
        step += 1
    return model


def store_peer(model: PlainGpt, tokenizer: bytes) -> int:
    """Rounds the weights to int8 by rows in place; returns the bytes under zlib-9, scales and tokenizer included."""
    parts = [tokenizer]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim < 2:
                parts.append(parameter.numpy().astype(np.float16).tobytes())
                continue
            scale = (parameter.abs().amax(1, keepdim=True) / 127).clamp_min(1e-12).half().float()
            codes = (parameter / scale).round().clamp(-127, 127)
            parts += [codes.numpy().astype(np.int8).tobytes(), scale.numpy().astype(np.float16).tobytes()]
            parameter.copy_(codes * scale)
    return len(zlib.compress(b"".join(parts), 9))


def run_peer(data: Path, rate: float, seconds: float, seed: int) -> dict[str, Any]:
    manifest = Manifest.read(data)
    model = train_peer(manifest, rate, seconds, seed)
    size = store_peer(model, manifest.tokenizer.save())
    config = EvaluateConfig()
    score = judge(
        PeerPredictor(model),
        manifest.tokenizer,
        manifest.validation_documents(),
        config.policy(PEER["context"]),
        config,
    )
    return {"bits_per_byte": score.bits_per_byte, "bytes": size}


def run_ours(folder: Path, text: list[str], seconds: float, seed: int) -> dict[str, Any]:
    recipe = load_recipe(
        Path("recipes/default.yaml"), [*text, f"budget.seconds={seconds}", f"budget.bytes={CAP}", f"seed={seed}"]
    )
    summary = Run.create(recipe, folder).execute(silent)
    return {"bits_per_byte": summary.bits_per_byte, "bytes": summary.bytes, "steps": summary.steps}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="stdlib")
    parser.add_argument("--override", nargs="*", default=[])
    parser.add_argument("--seconds", type=float, default=180.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("runs/quality"))
    parser.add_argument("--one", help="internal: one run as JSON")
    chosen = parser.parse_args()
    if chosen.one:
        keep_freed_memory()
        use_threads()
        task = json.loads(chosen.one)
        arm = task.pop("arm")
        result = (
            run_peer(Path(task.pop("data")), **task) if arm == "peer" else run_ours(Path(task.pop("folder")), **task)
        )
        print(json.dumps(result))
        return
    compare(chosen)


def compare(chosen: argparse.Namespace) -> None:
    def once(**task: Any) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, __file__, "--one", json.dumps(task)], capture_output=True, text=True, check=True
        )
        return json.loads(done.stdout.splitlines()[-1])

    folder = chosen.work / chosen.name
    first = Run.create(load_recipe(Path("recipes/default.yaml"), chosen.override), folder / "text")
    first.prepare(silent)
    data = str(first.data)
    tuned = {rate: once(arm="peer", data=data, rate=rate, seconds=chosen.seconds, seed=TUNING_SEED) for rate in RATES}
    rate = min(tuned, key=lambda candidate: tuned[candidate]["bits_per_byte"])
    peers, ours = [], []
    for seed in range(chosen.seeds):
        peers.append(once(arm="peer", data=data, rate=rate, seconds=chosen.seconds, seed=seed))
        ours.append(
            once(
                arm="ours", folder=str(folder / f"seed{seed}"), text=chosen.override, seconds=chosen.seconds, seed=seed
            )
        )
    means = {
        name: statistics.mean(run["bits_per_byte"] for run in runs) for name, runs in (("peer", peers), ("ours", ours))
    }
    print(f"{chosen.name}: {chosen.seconds:.0f} s, {CAP} bytes, n = {chosen.seeds} a side, peer's rate {rate}")
    for name, runs in (("peer", peers), ("ours", ours)):
        spread = statistics.stdev(run["bits_per_byte"] for run in runs)
        print(f"  {name}: {means[name]:.4f} bpb, sigma {spread:.4f}, at most {max(run['bytes'] for run in runs)} bytes")
    print(f"  fewer bits per byte: {100 * (1 - means['ours'] / means['peer']):.1f} %")
    record = {"machine": machine(), "versions": versions(), "seconds": chosen.seconds, "cap": CAP, "rate": rate}
    tuning = {str(candidate): run for candidate, run in tuned.items()}
    write_json(RESULTS / f"quality_{chosen.name}.json", {**record, "tuning": tuning, "peer": peers, "ours": ours})


if __name__ == "__main__":
    main()
