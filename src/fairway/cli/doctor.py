"""`fairway doctor`: what this machine is and can do."""

from typing import Annotated

from cyclopts import Parameter

from fairway.cli.console.options import Json

GROUP = "Looking things up"


def doctor(
    *,
    seconds: Annotated[float, Parameter(help="How long to measure each ceiling.")] = 0.5,
    json: Json = False,
) -> None:
    """Show versions, devices, threads, free room, and the measured ceilings of matrix products and of copying memory.

    Example: `fairway doctor --seconds 2`
    """
    from pathlib import Path

    from fairway.cli.console import output
    from fairway.core import device
    from fairway.core.errors import ConfigError
    from fairway.core.probe import diagnosis, optional_packages

    if not 0 < seconds <= 60:
        raise ConfigError(f"--seconds is {seconds:g}; more than 0 and at most 60 would work.")
    device.use_threads()
    found = diagnosis(Path.cwd(), seconds=seconds)
    if json:
        output.print_json(found)
        return
    machine, measured, room = dict(found["machine"]), found["measured"], found["room"]
    memory = machine.pop("memory_bytes")
    output.print_facts(
        "Machine", {**machine, "memory": output.size(memory), "free memory": output.size(room["free_memory_bytes"])}
    )
    output.print_facts(
        f"Ceilings, measured on {measured['device']}",
        {
            "fp32 products": f"{measured['fp32_flops'] / 1e9:,.0f} GFLOP/s",
            "bf16 products": f"{measured['bf16_flops'] / 1e9:,.0f} GFLOP/s"
            + ("" if measured["bf16_in_hardware"] else " (not in hardware here: train.precision.kind=fp32 is faster)"),
            "copying memory": f"{measured['copy_bytes_per_second'] / 1e9:,.1f} GB/s, read and written",
            "free disk here": output.size(room["free_disk_bytes"]),
        },
    )
    output.print_facts("Settings of training and scoring", _settings(found["compiler"], **found["settings"]))
    output.print_facts("Versions", found["versions"])
    rows = [(name, "yes" if present else "no", purpose) for name, (present, purpose) in optional_packages().items()]
    output.print_table("Optional packages", ("package", "installed", "needed for"), rows)


def _settings(
    compiler: str | None, native_kernels: str, freed_memory_kept: bool, float32_products_by_onednn: bool
) -> dict[str, str]:
    """Each setting with the switch that changes it."""
    kept = "kept" if freed_memory_kept else "returned"
    route = "oneDNN" if float32_products_by_onednn else "as torch chooses"
    return {
        "native kernels": f"{native_kernels} (FAIRWAY_NATIVE=0: none, FAIRWAY_LEVEL=... lowers the level)",
        "freed memory": f"{kept} (FAIRWAY_KEEP_FREED_MEMORY=0 returns it)",
        "float32 products": f"{route} (FAIRWAY_ONEDNN_FLOAT32=0: torch)",
        "C++ compiler": compiler or "none; native kernels are left out, everything works",
    }
