"""Becomes training processes on demand: loads the library once, then forks one real process for every command.

    python zygote.py

Reads one JSON object a line: `arguments` of `fairway`, `stderr` (a file), and optionally `largest_file` (bytes, for
RLIMIT_FSIZE), `die_at` (the fault point, counted from 0, at which the process kills itself), `trace` (a file that gets
the name of every fault point passed). Answers `{"pid": ...}` at once, and `{"pid": ..., "code": ...}` when asked to
`wait` for it.
"""

import json
import os
import resource
import signal
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # loaded by the first custom operator otherwise, in every process anew

from fairway import run as composition
from fairway.cli.console import application
from fairway.core import storage
from fairway.train.provenance import code_digest


def main() -> None:
    torch.set_num_threads(1)
    application.application()
    code_digest()
    # Only the share of the peak in the log depends on it, and it would be measured anew in every process.
    composition.gemm_ceiling = lambda *_, **__: 1e10
    for line in sys.stdin:
        command = json.loads(line)
        if "wait" in command:
            answer = {"pid": command["wait"], "code": _ended(command["wait"])}
        else:
            answer = {"pid": _forked(command)}
        print(json.dumps(answer), flush=True)


def _ended(child: int) -> int:
    """The exit code of a child, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _forked(command: dict[str, Any]) -> int:
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        _prepare(command)
        with storage.faults(_hook(command)):
            code = application.invoke(command["arguments"])
    except BaseException:
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(code)


def _prepare(command: dict[str, Any]) -> None:
    """Gives the process its own input, output, environment and limits."""
    os.setpgid(0, 0)
    with open(command["stderr"], "ab", buffering=0) as file, open(os.devnull, "r+b") as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(nothing.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if "largest_file" in command:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (command["largest_file"],) * 2)


def _hook(command: dict[str, Any]) -> Any:
    """Counts fault points, writes their names where asked, and kills the process at the one it is told."""
    points = _counted()
    path = command.get("trace")
    trace = os.open(Path(path), os.O_WRONLY | os.O_CREAT | os.O_APPEND) if path else None

    def passed(name: str) -> None:
        if trace is not None:
            os.write(trace, f"{name}\n".encode())
        if next(points) == command.get("die_at", -1):
            os.kill(os.getpid(), signal.SIGKILL)

    return passed


def _counted() -> Iterator[int]:
    count = 0
    while True:
        yield count
        count += 1


if __name__ == "__main__":
    main()
