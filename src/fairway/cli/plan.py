"""`fairway plan`: what a recipe would cost."""

from typing import TYPE_CHECKING

from fairway.cli.console.options import ByteDial, Json, Overrides, RecipePath, TimeDial

if TYPE_CHECKING:
    from fairway.model.lm import ModelConfig
    from fairway.plan import Plan

GROUP = "Making a model"


def plan(
    recipe: RecipePath = "",
    /,
    *overrides: Overrides,
    size: ByteDial = None,
    time: TimeDial = None,
    json: Json = False,
) -> None:
    """Estimate a run before training: parameters, artifact, FLOPs, memory, step time, steps, and which budget binds.

    Times a few real training steps on this machine.

    Example: `fairway plan recipes/default.yaml model.width=256 --bytes 1MB --time 3m`
    """
    from fairway.cli.console import output
    from fairway.cli.console.progress import progress
    from fairway.cli.console.target import chosen_recipe
    from fairway.plan import estimate

    chosen = chosen_recipe(recipe, overrides, size, time)
    with progress() as listener:
        found = estimate(chosen, listener)
    if json:
        sizes = {"width": chosen.model.width, "layers": chosen.model.depth.layers}
        output.print_json({**vars(found), **sizes, "total_parameters": found.total_parameters})
        return
    total, active = found.total_parameters, found.active_parameters
    rows = [(part, count, output.share(count, total)) for part, count in found.parameters.items()]
    rows += [("all", total, ""), ("used by one token", active, output.share(active, total))]
    output.print_table("Parameters", ("part", "count", "share"), rows)
    output.print_facts("Costs", _costs(found, chosen.model))
    output.print_table("The weights in other forms", ("form", "bytes"), list(found.exports.items()))


def _costs(found: "Plan", model: "ModelConfig") -> dict[str, str]:
    from fairway.cli.console import output
    from fairway.core.budget import show_bytes, show_seconds

    kept = "activations" if found.recomputation == "none" else "activations outside recomputed blocks"
    return {
        "model": f"width {model.width}, {model.depth.layers} layers, vocabulary {found.vocabulary:,}",
        "artifact": f"{output.size(found.artifact_bytes)} predicted at {found.bits_per_weight:.2f} bits a weight, "
        f"cap {output.size(found.bytes_cap)}",
        "memory": f"{show_bytes(found.peak_memory_bytes)}, of it {kept} "
        f"{show_bytes(found.saved_activation_bytes)}, weights and states {show_bytes(found.state_bytes)}",
        "recomputation": f"{found.recomputation}: blocks keep {show_bytes(found.predicted_activation_bytes)} "
        f"at the peak by its plan, {found.recomputed_blocks:g} of them run once more",
        "FLOPs": f"{found.flops_per_token:.3g} a token, {found.total_flops:.3g} in all",
        "step": f"{1000 * found.step_seconds:.0f} ms (the first {1000 * found.first_step_seconds:.0f} ms), "
        f"{found.tokens_per_step:,} tokens",
        "pace": f"{found.tokens_per_second:,.0f} tokens/s, {found.flops_per_second / 1e9:,.0f} GFLOP/s, "
        f"{100 * found.mfu:.0f} % of a matrix product's",
        "training": f"{found.steps:,} steps, {found.tokens:,} tokens, "
        f"{found.tokens_per_parameter:.1f} a parameter, in {show_seconds(found.seconds)}{_divided(found)}",
        "binding": f"{found.binding}. {found.advice}",
    }


def _divided(found: "Plan") -> str:
    """How a run of several trainings is divided."""
    if found.trainings == 1:
        return ""
    return (
        f": {found.trainings} trainings of {found.training_steps:,} steps each, "
        f"all but the first beginning at its step {found.rewind_step:,} again"
    )
