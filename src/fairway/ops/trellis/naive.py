"""The cheapest path through a trellis whose states choose the even or the odd whole numbers: the definition.

`v_n = 2 k_n + (s_n mod 2)`, `s_(n+1) = next[s_n, k_n mod 2]`, `s_0 = 0`; the values v minimise
`sum_n (t_n - v_n)^2 + p_n v_n^2` over all codes k. Viterbi 1967; Marcellin & Fischer 1990.
Shape key: N numbers, S states, B the two branches out of a state.
"""

from typing import Any

import numpy as np

Numbers = np.ndarray[Any, np.dtype[np.float64]]
Whole = np.ndarray[Any, np.dtype[np.int32]]


def search(target_N: Numbers, price_N: Numbers, next_SB: Whole) -> Whole:
    """The values v of the cheapest path; the codes are `v >> 1`."""
    states = len(next_SB)
    leads_SB = predecessors(next_SB)
    from_SB, branch_SB = leads_SB >> 1, leads_SB & 1
    residue_SB = (from_SB & 1) + 2 * branch_SB
    cost_S = np.full(states, np.inf)
    cost_S[0] = 0.0
    better_NS = np.empty((len(target_N), states), np.int64)
    value_NR = np.empty((len(target_N), 4))
    row_S = np.arange(states)
    for n, (target, price) in enumerate(zip(target_N, price_N, strict=True)):
        lowest = target / (1 + price)  # the cost rises evenly to both sides of it
        value_NR[n] = 4 * np.rint((lowest - np.arange(4)) / 4) + np.arange(4)
        price_R = (target - value_NR[n]) ** 2 + price * value_NR[n] ** 2
        cost_SB = cost_S[from_SB] + price_R[residue_SB]
        better_NS[n] = cost_SB[:, 1] < cost_SB[:, 0]
        cost_S = cost_SB[row_S, better_NS[n]]
    best_N = np.empty(len(target_N), np.int32)
    state = int(cost_S.argmin())
    for n in reversed(range(len(target_N))):
        lead = int(leads_SB[state, better_NS[n, state]])
        best_N[n] = value_NR[n, ((lead >> 1) & 1) + 2 * (lead & 1)]
        state = lead >> 1
    return best_N


def predecessors(next_SB: Whole) -> Whole:
    """For each state the two `2 state + branch` that lead to it, in rising order."""
    order = np.argsort(next_SB.reshape(-1), kind="stable").astype(np.int32)
    assert (next_SB.reshape(-1)[order] == np.repeat(np.arange(len(next_SB)), 2)).all()
    return order.reshape(-1, 2)
