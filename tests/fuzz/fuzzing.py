"""Feeds hostile files to a reader in processes of their own, with bounded memory and time.

    python fuzzing.py TARGET SEED FIRST COUNT FOLDER

Input number i of a seed is always the same file, so whatever ends a worker can be made again. A worker writes what it
found to FOLDER/FIRST.json and each offending file beside it; one that dies leaves the number of its input in
FOLDER/FIRST.at.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from fairway.artifact.format import read_bytes, restore
from fairway.core.errors import ArtifactError, DataError
from fairway.data.shards import open_shard
from fuzz.mutators import SHARD_VOCABULARY, artifact_input, shard_input

SLOWEST = 1.0
"""CPU seconds that one input may take."""
HANGS = 10.0
"""CPU seconds after which the process is ended."""
ROOM = 512 << 20
"""Bytes of address space that a worker may add to what it has before its first input."""
MOST_FINDINGS = 20
Reader = Callable[[bytes, int], None]


@dataclass
class Campaign:
    """What the inputs of all workers came to."""

    inputs: int = 0
    accepted: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    memory: int = 0
    """Bytes of resident memory that the hungriest worker added."""
    kinds: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)


def read_artifact(data: bytes, scratch: int) -> None:  # noqa: ARG001
    """Reads an artifact down to its last tensor."""
    for tensor in restore(read_bytes(data)).values():
        assert bool(tensor.isfinite().all())


def read_shard(data: bytes, scratch: int) -> None:
    """Opens a shard from a file, and reads every token."""
    os.ftruncate(scratch, 0)
    os.pwrite(scratch, data, 0)
    tokens = open_shard(Path(f"/proc/self/fd/{scratch}"), SHARD_VOCABULARY)
    assert not len(tokens) or int(tokens.max()) < SHARD_VOCABULARY


def read_planted(data: bytes, scratch: int) -> None:  # noqa: ARG001
    """A reader with faults, each of which the input of its number brings out."""
    number = int(data)
    if number == 25:
        raise IndexError("out of range")
    if number == 30:
        bytearray(2 * ROOM)
    start = time.process_time()
    while number == 35 and time.process_time() - start < 1.2 * SLOWEST:
        pass
    if number == 1_000:
        os.kill(os.getpid(), signal.SIGSEGV)
    raise DataError("refused")


TARGETS: dict[str, tuple[Callable[[int, int], tuple[str, bytes]], Reader, type[Exception]]] = {
    "artifact": (artifact_input, read_artifact, ArtifactError),
    "shard": (shard_input, read_shard, DataError),
}
PLANTED = {"planted": (lambda _, index: ("planted", str(index).encode()), read_planted, DataError)}
"""A target that finds fault with the fuzzer itself."""


def fuzz(target: str, inputs: int, seed: int, folder: Path, workers: int = 1) -> Campaign:
    """Shares inputs out among worker processes and adds up what they found."""
    folder.mkdir(parents=True, exist_ok=True)
    shares = [range(inputs * i // workers, inputs * (i + 1) // workers) for i in range(workers)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = []
    start = time.monotonic()
    for share in shares:
        command = [sys.executable, __file__, target, str(seed), str(share.start), str(len(share)), str(folder)]
        running.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    campaign = Campaign()
    for share, process in zip(shares, running, strict=True):
        _, said = process.communicate()
        _add(campaign, target, folder / f"{share.start}", process.returncode, said, seed)
    campaign.seconds = time.monotonic() - start
    return campaign


def _add(campaign: Campaign, target: str, path: Path, code: int, said: str, seed: int) -> None:
    if code:
        at = int.from_bytes(path.with_suffix(".at").read_bytes(), "little")
        campaign.findings.append(f"{target} seed {seed} input {at} ended the process with {code}: {said[-300:]}")
        return
    found = json.loads(path.with_suffix(".json").read_text())
    campaign.inputs += found["inputs"]
    campaign.accepted += found["accepted"]
    campaign.slowest = max(campaign.slowest, found["slowest"])
    campaign.memory = max(campaign.memory, found["memory"])
    campaign.kinds.update(found["kinds"])
    campaign.findings += found["findings"]


def work(target: str, seed: int, first: int, count: int, folder: Path) -> dict[str, Any]:
    """One worker's share of the inputs."""
    make, read, refusal = (TARGETS | PLANTED)[target]
    progress = os.open(folder / f"{first}.at", os.O_RDWR | os.O_CREAT)
    scratch = os.memfd_create("scratch")
    kinds: Counter[str] = Counter()
    findings: list[str] = []
    accepted, slowest = 0, 0.0
    for index in range(min(count, 20)):  # load what is loaded once
        _verdict(read, make(seed, first + index)[1], scratch, refusal)
    _limit_memory()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for index in range(first, first + count):
        os.pwrite(progress, index.to_bytes(8, "little"), 0)
        kind, data = make(seed, index)
        signal.setitimer(signal.ITIMER_VIRTUAL, HANGS)
        start = time.process_time()
        error = _verdict(read, data, scratch, refusal)
        seconds = time.process_time() - start
        kinds[kind] += 1
        accepted += error == "accepted"
        slowest = max(slowest, seconds)
        told = error if error not in ("accepted", "refused") else f"{seconds:.1f} s" if seconds > SLOWEST else ""
        if told and len(findings) < MOST_FINDINGS:
            findings.append(f"{target} seed {seed} input {index} ({kind}): {told}")
            (folder / f"finding-{seed}-{index}.{target}").write_bytes(data)
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    counts = {"inputs": count, "accepted": accepted, "slowest": slowest, "memory": memory}
    return {**counts, "kinds": kinds, "findings": findings}


def _verdict(read: Reader, data: bytes, scratch: int, refusal: type[Exception]) -> str:
    try:
        read(data, scratch)
    except refusal as error:
        return "refused" if str(error) and "\n" not in str(error) else f"an odd message: {str(error)!r:.100}"
    except BaseException as error:
        return f"{type(error).__name__}: {error!s:.200}"
    return "accepted"


def _limit_memory() -> None:
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + ROOM, now + ROOM))


def main(target: str, seed: str, first: str, count: str, folder: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    found = work(target, int(seed), int(first), int(count), Path(folder))
    (Path(folder) / f"{first}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
