"""A score taken by a process of its own, which sees nothing but the artifact file and the prepared
validation text.

`python -m fairway.evaluate.fresh ARTIFACT DATA SETTINGS` prints one JSON line per sign of progress, and the
score on the last.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from fairway.core import device
from fairway.core.errors import EvaluationError, FairwayError
from fairway.core.log import Event, Listener
from fairway.data.manifest import Manifest
from fairway.evaluate.bpb import EvaluateConfig, evaluate
from fairway.evaluate.gates import facts_of
from fairway.serve.load import load


def score_in_fresh_process(artifact: Path, data: Path, config: EvaluateConfig, listener: Listener) -> dict[str, Any]:
    """`Score.plain()` of an artifact on the validation text of a manifest's folder, or `EvaluationError`."""
    command = [
        sys.executable,
        "-m",
        "fairway.evaluate.fresh",
        str(artifact),
        str(data),
        json.dumps(config.plain()),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        last: dict[str, Any] = {}
        try:
            for line in process.stdout:
                last = json.loads(line)
                if "fraction" in last:
                    listener(Event("evaluate", last["fraction"]))
        except BaseException:
            process.kill()
            raise
    if process.returncode or "bits_per_byte" not in last:
        raise EvaluationError(last.get("error") or f"The scoring process ended with exit code {process.returncode}.")
    return last


def main(artifact: str, data: str, settings: str) -> int:
    """Scores and prints; returns the exit code."""

    def report(event: Event) -> None:
        print(json.dumps({"fraction": event.fraction}), flush=True)

    device.keep_freed_memory()
    device.route_float32_products(forward_only=True)
    device.use_threads()
    try:
        manifest = Manifest.read(Path(data))
        config = EvaluateConfig.read(json.loads(settings))
        score = evaluate(
            load(artifact), manifest.validation_documents(), config, facts=facts_of(manifest), listener=report
        )
    except FairwayError as error:
        print(json.dumps({"error": str(error)}), flush=True)
        return error.exit_code
    print(json.dumps(score.plain()), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
