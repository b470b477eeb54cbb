"""`fairway inspect`: what an artifact is made of."""

from typing import Annotated

from cyclopts import Parameter

from fairway.cli.console.options import Json

GROUP = "Using a model"


def inspect(
    artifact: Annotated[str, Parameter(help="A `.fwy` file, or a run's folder.")],
    /,
    *,
    json: Json = False,
) -> None:
    """Show what is in an artifact: bytes group by group, each tensor with bits per weight and entropy, settings.

    Example: `fairway inspect runs/default/model.fwy`
    """
    import yaml

    from fairway.cli.console import output
    from fairway.cli.console.target import artifact_path
    from fairway.report.anatomy import anatomy

    found = anatomy(artifact_path(artifact))
    if json:
        output.print_json(found)
        return
    rows = [(name, round(size), output.share(size, found.bytes)) for name, size in found.groups.items()]
    output.print_table(found.path, ("group", "bytes", "share"), [*rows, ("file", found.bytes, "")])
    columns = ("tensor", "packing", "shape", "bytes", "bits/weight", "entropy", "overhead", "zeros")
    tensors = [
        (
            tensor.name,
            tensor.packing,
            "x".join(map(str, tensor.shape)),
            round(tensor.bytes),
            tensor.bits_per_weight,
            tensor.entropy,
            f"{100 * tensor.overhead:.2f} %",
            f"{100 * tensor.zeros:.1f} %",
        )
        for tensor in found.tensors
    ]
    output.print_table("Tensors", columns, tensors)
    output.print_facts(
        "Contents",
        {
            "parameters": found.parameters,
            "bits a parameter": found.bits_per_parameter,
            "tokenizer": f"{found.tokenizer}, {found.vocabulary:,} ids",
            "coder": found.coder,
            **found.notes,
        },
    )
    print(yaml.safe_dump({"model": found.model}, sort_keys=False), end="")
