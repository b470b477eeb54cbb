"""SparseGPT, GPTQ, Wanda and one-dimensional k-means against what one would use instead.

`python benchmarks/prune_speed.py [--sizes 512,1024,2048] [--rounds 7] [--threads 1]`. SparseGPT (half, and 2:4) and
GPTQ (steps of an eighth of a row's deviation) run beside a plain PyTorch version of the published loop with blocks of
128, on the same Hessian; both must reach the same loss `1/2 tr(D H D^T)`. Wanda's metric and mask run beside
SparseGPT's solve. k-means of a million weights into 64 centres runs beside scikit-learn's, from the same first centres.
Every contender has a process of its own, and they take turns. About five minutes. Writes
benchmarks/results/prune_speed.json after every task; rows of other sizes and tasks that it holds stay, so that a part
may be measured again by itself (`--tasks gptq --sizes 1024`).
"""

import argparse
import datetime
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import torch
from pairs import Measured, measure, serve
from torch import Tensor

from fairway.compress.levels import Sorted, fit_levels
from fairway.compress.masks import keep_in_rows
from fairway.compress.solve import damped, n_of_m, reconstruct, unstructured
from fairway.core.device import keep_freed_memory
from fairway.core.probe import machine, versions
from fairway.core.storage import read_json, write_json
from report import RESULTS

BLOCK, DAMPING = 128, 0.01
WEIGHTS, CENTRES = 1_000_000, 64
TASKS = ("sparsegpt", "sparsegpt 2:4", "gptq", "wanda", "kmeans")


def layer(size: int) -> tuple[Tensor, Tensor, Tensor]:
    """A weight (R, C), the Hessian of correlated inputs of unlike sizes (C, C), and each row's step, in float32."""
    random = torch.Generator().manual_seed(size)
    mixing = torch.randn(size, size, generator=random) / size**0.5
    x_NC = torch.randn(4 * size, size, generator=random) @ (torch.eye(size) + mixing)
    x_NC *= torch.randn(size, generator=random).mul(0.5).exp()
    weight_RC = torch.randn(size, size, generator=random)
    return weight_RC, 2 * x_NC.T @ x_NC / len(x_NC), weight_RC.square().mean(1).sqrt() / 8


def published(weight_RC: Tensor, hessian_CC: Tensor, step_R: Tensor | None, sparsity: float, group: int) -> Tensor:
    """The loop as published: inverse by Cholesky, then column after column within blocks; `group` 4 is 2:4."""
    work, hessian = weight_RC.clone(), hessian_CC.clone()
    columns = len(hessian)
    dead = hessian.diagonal() == 0
    hessian[dead, dead] = 1
    work[:, dead] = 0
    hessian.diagonal().add_(DAMPING * hessian.diagonal().mean())
    inverse = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessian)), upper=True)
    for start in range(0, columns, BLOCK):
        stop = min(start + BLOCK, columns)
        part, factor = work[:, start:stop].clone(), inverse[start:stop, start:stop]
        fixed, errors = torch.zeros_like(part), torch.zeros_like(part)
        gone = torch.zeros_like(part, dtype=torch.bool)
        if sparsity and not group:
            score = part**2 / factor.diagonal().reshape(1, -1) ** 2
            gone = score <= score.flatten().sort().values[int(score.numel() * sparsity) - 1]
        for i in range(stop - start):
            if group and i % group == 0:
                score = part[:, i : i + group] ** 2 / factor.diagonal()[i : i + group].reshape(1, -1) ** 2
                gone.scatter_(1, i + torch.topk(score, group // 2, dim=1, largest=False).indices, True)
            column = part[:, i]
            q = column.clone()
            q[gone[:, i]] = 0
            if step_R is not None:
                q = torch.round(q / step_R) * step_R
            fixed[:, i] = q
            errors[:, i] = (column - q) / factor[i, i]
            part[:, i:] -= errors[:, i].unsqueeze(1).matmul(factor[i, i:].unsqueeze(0))
        work[:, start:stop] = fixed
        work[:, stop:] -= errors.matmul(inverse[start:stop, stop:])
    return work


def solver(task: str, side: str, size: int) -> tuple[Callable[[], Tensor], Tensor, Tensor]:
    """What one round does, the weight and the Hessian."""
    weight_RC, hessian_CC, step_R = layer(size)
    if side == "ours":
        chosen = {"sparsegpt": unstructured(0.5), "sparsegpt 2:4": n_of_m(2, 4), "gptq": None}[task]
        steps = step_R if task == "gptq" else None
        return (
            lambda: reconstruct(weight_RC, hessian_CC, step_R=steps, selection=chosen).weight_RC,
            weight_RC,
            hessian_CC,
        )
    if task == "gptq":
        return lambda: published(weight_RC, hessian_CC, step_R, 0.0, 0), weight_RC, hessian_CC
    group = 4 if task == "sparsegpt 2:4" else 0
    return lambda: published(weight_RC, hessian_CC, None, 0.5, group), weight_RC, hessian_CC


def prepared(task: str, side: str, size: int) -> tuple[Callable[[], Any], dict[str, Any]]:
    """One contender: what a round runs, and its result's quality."""
    if task == "wanda":
        weight_RC, hessian_CC, _ = layer(size)
        return lambda: weight_RC * keep_in_rows(weight_RC.abs() * hessian_CC.diagonal().sqrt(), 0.5), {}
    if task == "kmeans":
        return clustering(side, size)
    run, weight_RC, hessian_CC = solver(task, side, size)
    result_RC = run()
    change_RC = (result_RC - weight_RC).double()
    loss = 0.5 * float(((change_RC @ damped(hessian_CC, DAMPING)) * change_RC).sum())
    return run, {"loss": loss, "zeros": float((result_RC == 0).float().mean())}


def clustering(side: str, count: int) -> tuple[Callable[[], Any], dict[str, Any]]:
    """k-means of Gaussian weights from evenly spaced centres, by sorted sums or by scikit-learn."""
    weights = np.random.default_rng(0).standard_normal(count).astype(np.float32)
    first = np.linspace(weights.min(), weights.max(), CENTRES)
    if side == "ours":
        run_ours = lambda: fit_levels(Sorted(weights), first, rounds=1000, tolerance=0.0)  # noqa: E731
        return run_ours, {"loss": Sorted(weights).error(run_ours())}
    from sklearn.cluster import KMeans

    def run() -> Any:
        start = first.reshape(-1, 1).astype(np.float32)
        return KMeans(CENTRES, init=start, n_init=1, max_iter=50).fit(weights.reshape(-1, 1))

    return run, {"loss": float(run().inertia_)}


def raced(task: str, size: int, rounds: int, threads: int) -> dict[str, Measured]:
    """Both sides of one task; Wanda's is SparseGPT's solve."""
    other = ("sparsegpt", "ours") if task == "wanda" else (task, "peer")
    sides = {"ours": (task, "ours"), "peer": other}
    commands = {name: [__file__, "--one", f"{pair[0]},{pair[1]},{size}"] for name, pair in sides.items()}
    return measure(commands, rounds, threads)


def agree(task: str, found: dict[str, Measured]) -> bool:
    """Whether the results are of the same quality: losses within 2 %, or for k-means no more error."""
    if task == "wanda":
        return True
    ours, peer = found["ours"].facts["loss"], found["peer"].facts["loss"]
    return ours <= peer * 1.001 if task == "kmeans" else abs(ours / peer - 1) < 0.02


def main() -> None:
    """Races every task at every size and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="512,1024,2048")
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--weights", type=int, default=WEIGHTS, help="of k-means")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=RESULTS)
    parser.add_argument("--one", help="internal: one contender")
    given = parser.parse_args()
    if given.one:
        keep_freed_memory()
        task, side, size = given.one.split(",")
        serve(lambda: prepared(task, side, int(size)))
        return
    tasks, path = given.tasks.split(","), given.folder / "prune_speed.json"
    jobs = [(task, int(size)) for size in given.sizes.split(",") for task in tasks if task != "kmeans"]
    for task, size in [*jobs, *([("kmeans", given.weights)] if "kmeans" in tasks else [])]:
        found = raced(task, size, given.rounds, given.threads)
        ratio = found["peer"].wall / found["ours"].wall if agree(task, found) else None
        row = {"task": task, "size": size, "ratio": ratio, "measured": {k: asdict(v) for k, v in found.items()}}
        said = f"{ratio:.1f} x as fast" if ratio else "the results differ, so there is no ratio"
        ours, peer = (1e3 * found[side].wall for side in ("ours", "peer"))
        print(f"{task:<14}{size:>8}: {ours:8.1f} ms, peer {peer:8.1f} ms, {said}", flush=True)
        rows = read_json(path)["rows"] if path.exists() else []
        rows = [old for old in rows if (old["task"], old["size"]) != (task, size)] + [row]
        rows.sort(key=lambda row: (TASKS.index(row["task"]), row["size"]))
        today = datetime.date.today().isoformat()
        write_json(path, {"date": today, "machine": machine(), "versions": versions(), "rows": rows})


if __name__ == "__main__":
    main()
