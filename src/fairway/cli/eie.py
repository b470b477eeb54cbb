"""`fairway eie`: what an artifact's sparse tensors would cost on a modelled sparse accelerator."""

from typing import Annotated

from cyclopts import Parameter, validators

from fairway.cli.console.options import Json

GROUP = "Using a model"
PUBLISHED = ("layer", "cycles", "µs", "µs by paper", "balance", "padding", "work saved")


def eie(
    artifact: Annotated[
        str,
        Parameter(
            show_default=False,
            help="A `.fwy` file with sparse tensors, or a run's folder. Without one, the nine layers of the EIE paper.",
        ),
    ] = "",
    /,
    *,
    elements: Annotated[int, Parameter(help="Processing elements.", validator=validators.Number(gte=1, lte=4096))] = 64,
    fifo: Annotated[int, Parameter(help="Places in each element's queue.", validator=validators.Number(gte=1))] = 8,
    code_bits: Annotated[
        int, Parameter(help="Bits of a weight's code.", validator=validators.Number(gte=1, lte=12))
    ] = 4,
    density: Annotated[
        float,
        Parameter(
            help="Share of random activations that are not zero, where no text is given.",
            validator=validators.Number(gt=0, lte=1),
        ),
    ] = 1.0,
    text: Annotated[str | None, Parameter(help="Take the activations that the model has behind this text.")] = None,
    json: Json = False,
) -> None:
    """Simulate sparse products on the EIE accelerator: cycles, balance between elements, padding, work saved.

    Cycles are those of the modelled hardware, never the speed of a program.

    Example: `fairway eie runs/sparse/model.fwy --elements 16`
    """
    from fairway.cli.console import output
    from fairway.cli.console.accelerator import layers_of_artifact, published_layers, sweep
    from fairway.cli.console.target import artifact_path
    from fairway.compress.eie import Machine

    machine = Machine(elements=elements, fifo=fifo, code_bits=code_bits)
    if not artifact:
        rows = published_layers(machine)
        title = f"Random layers of the published sizes and densities, {elements} elements at the paper's 800 MHz"
        output.print_json(rows) if json else output.print_table(title, PUBLISHED, [list(row.values()) for row in rows])
        return
    layers = layers_of_artifact(artifact_path(artifact), machine, density, text)
    balances = sweep(layers)
    if json:
        output.print_json({"tensors": [layer.facts for layer in layers], **balances})
        return
    columns = tuple(name.replace("_", " ") for name in layers[0].facts)
    output.print_table("Tensors", columns, [list(layer.facts.values()) for layer in layers])
    for name, found in balances.items():
        output.print_facts(name.replace("_", " ").capitalize(), {str(key): value for key, value in found.items()})
