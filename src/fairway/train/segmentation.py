"""Which stretches of blocks to compute again: plans, their memory and their extra work; no tensors.

Blocks run one after another. A segment that is computed again keeps its input only, and all of its
activations while its own gradients are computed, one such segment at a time; a segment that is not keeps
everything throughout. So the peak is `sum of kept segments + sum of recomputed segments' inputs + the largest
recomputed segment's rest`. Chen et al. 2016 (arXiv:1604.06174); Griewank & Walther 2000
(doi:10.1145/347837.347846) for chains that recompute recursively.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from fairway.core.budget import show_bytes
from fairway.core.errors import ConfigError


@dataclass(frozen=True)
class Segment:
    """Blocks from `start` to `stop`."""

    start: int
    stop: int
    recompute: bool = True


@dataclass(frozen=True)
class Costs:
    """What was counted of each block."""

    inputs: tuple[int, ...]
    """Bytes of its input."""
    kept: tuple[int, ...]
    """Bytes that autograd keeps beside the input and the weights."""
    dear: tuple[int, ...]
    """Bytes of those beside which the rest is cheap to compute again."""
    work: tuple[float, ...]
    """Work of evaluating it once."""
    states: tuple[int | None, ...] = ()
    """Bytes of the state it carries along the sequence, where that does not grow and it may be cut along time."""
    tokens: int = 1
    """Tokens of the sequences."""

    def rest(self, start: int, stop: int) -> int:
        """Bytes kept by blocks from `start` to `stop` beside the input of the first."""
        return sum(self.kept[start:stop]) + sum(self.inputs[start + 1 : stop])


@dataclass(frozen=True)
class Prediction:
    """What a plan costs."""

    bytes: int
    """Activations on the device at the peak; the parts around the blocks do not count."""
    work: float
    """Blocks evaluated again, weighted by their work."""


def equal_segments(count: int, size: int, keep_last: bool) -> list[Segment]:
    """Segments of `size` blocks; the last, whose gradients come first, need not be computed again."""
    starts = range(0, count, size)
    return [Segment(start, min(count, start + size), not (keep_last and start + size >= count)) for start in starts]


def square_root_size(count: int) -> int:
    """Blocks per segment that make segments plus blocks per segment smallest, for blocks of equal size."""
    return min(range(1, count + 1), key=lambda size: (math.ceil(count / size) + size, size), default=1)


def predict(segments: Sequence[Segment], costs: Costs) -> Prediction:
    """Peak and extra work of a plan."""
    again = [segment for segment in segments if segment.recompute]
    whole = sum(
        costs.inputs[segment.start] + costs.rest(segment.start, segment.stop)
        for segment in segments
        if not segment.recompute
    )
    inputs = sum(costs.inputs[segment.start] for segment in again)
    largest = max((costs.rest(segment.start, segment.stop) for segment in again), default=0)
    return Prediction(whole + inputs + largest, sum(sum(costs.work[one.start : one.stop]) for one in again))


@dataclass(frozen=True)
class _Plan:
    """A plan of the first blocks; `before` is what it adds its last segment to."""

    bytes: int
    work: float
    last: Segment | None = None
    before: "_Plan | None" = None

    def and_(self, segment: Segment, bytes_: int, work: float) -> "_Plan":
        return _Plan(self.bytes + bytes_, self.work + work, segment, self)

    def segments(self) -> list[Segment]:
        done: list[Segment] = []
        plan: _Plan | None = self
        while plan is not None and plan.last is not None:
            done.append(plan.last)
            plan = plan.before
        return done[::-1]


def cheapest_segments(costs: Costs, budget: int | None) -> list[Segment]:
    """The exact optimum over all plans: least work within `budget` bytes, or least bytes without a budget.

    Ties go to fewer bytes, or to less work. Raises `ConfigError` where no plan fits the budget.
    """
    best, best_key = _smallest(costs)
    if budget is None:
        return best.segments()
    if best_key[0] > budget:
        need = show_bytes(best_key[0])
        raise ConfigError(f"Activations may take {show_bytes(budget)}; with recomputation they need {need} at least.")
    for cap in _caps(costs):
        for plan in _frontier(costs, cap, budget - cap, best.work):
            if (plan.work, plan.bytes + cap) < (best.work, best_key[0]):
                best, best_key = plan, (plan.bytes + cap, plan.work)
    return best.segments()


def _caps(costs: Costs) -> list[int]:
    """Sizes that the largest recomputed segment may have; 0 where none is recomputed."""
    count = len(costs.kept)
    return sorted({0} | {costs.rest(start, stop) for start in range(count) for stop in range(start + 1, count + 1)})


def _smallest(costs: Costs) -> tuple[_Plan, tuple[int, float]]:
    """The plan of fewest bytes, then least work, and both."""
    best: _Plan | None = None
    key = (sum(costs.inputs) + sum(costs.kept) + 1, math.inf)
    for cap in _caps(costs):
        if cap >= key[0]:
            break
        plans = [_Plan(0, 0.0)]
        for stop in range(1, len(costs.kept) + 1):
            endings = _endings(costs, cap, stop, [[plan] for plan in plans])
            plans.append(min(endings, key=lambda plan: (plan.bytes, plan.work)))
        if (plans[-1].bytes + cap, plans[-1].work) < key:
            best, key = plans[-1], (plans[-1].bytes + cap, plans[-1].work)
    assert best is not None
    return best, key


def _frontier(costs: Costs, cap: int, most_bytes: int, most_work: float) -> list[_Plan]:
    """Plans within all three bounds, none worse than another in both bytes and work."""
    fronts: list[list[_Plan]] = [[_Plan(0, 0.0)]]
    for stop in range(1, len(costs.kept) + 1):
        front: list[_Plan] = []
        for plan in sorted(_endings(costs, cap, stop, fronts), key=lambda plan: (plan.bytes, plan.work)):
            within = plan.bytes <= most_bytes and plan.work <= most_work
            if within and (not front or plan.work < front[-1].work):
                front.append(plan)
        fronts.append(front)
    return fronts[-1]


def _endings(costs: Costs, cap: int, stop: int, plans_to: Sequence[list[_Plan]]) -> Iterator[_Plan]:
    """Every plan of the blocks before `stop` that ends with one more segment there."""
    start = stop - 1
    whole = costs.inputs[start] + costs.kept[start]
    for plan in plans_to[start]:
        yield plan.and_(Segment(start, stop, recompute=False), whole, 0.0)
    rest, work = 0, 0.0
    for start in range(stop - 1, -1, -1):
        rest += costs.kept[start] + (costs.inputs[start + 1] if start + 1 < stop else 0)
        work += costs.work[start]
        if rest > cap:
            return
        for plan in plans_to[start]:
            yield plan.and_(Segment(start, stop), costs.inputs[start], work)


@cache
def revolve_split(count: int, slots: int) -> tuple[int, int]:
    """`(evaluations, k)` to reverse `count` blocks with `slots` stored inputs, the chain's own among them.

    The fewest evaluations without a tape, and the number of blocks to run before the next input is stored:
    `t(n, c) = min_k k + t(n - k, c - 1) + t(k, c)`, `t(1, c) = 0`, `t(n, 1) = n (n - 1) / 2`.
    """
    assert count >= 1
    assert slots >= 1
    if count == 1:
        return 0, 0
    if slots == 1:
        return count * (count - 1) // 2, count - 1
    return min((k + revolve_split(count - k, slots - 1)[0] + revolve_split(k, slots)[0], k) for k in range(1, count))


def revolve_slots(count: int, repeats: int) -> int:
    """Fewest slots with which no block is evaluated more than `repeats` times without a tape: C(c + r, c) >= n."""
    return next(slots for slots in range(1, count + 1) if math.comb(slots + repeats, slots) >= count)
