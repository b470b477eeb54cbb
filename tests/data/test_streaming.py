"""A corpus goes through preparation in bounded memory."""

import subprocess
import sys
from pathlib import Path

import pytest

GIGABYTE = 1_000_000_000
AT_ONCE = 10_000_000

WRITE = """
import random, sys
from pathlib import Path
folder, size, each = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
words = [bytes(random.Random(n).choices(b"abcdefghijklmnop", k=2 + n % 9)) for n in range(5000)]
for number in range(size // each):
    draw = random.Random(number)
    lines = [b" ".join(draw.choices(words, k=12)) for _ in range(2000)]
    text = b"".join(b"%d %s\\n" % (n, lines[draw.randrange(2000)]) for n in range(each // 60))
    (folder / f"{number:04d}.txt").write_bytes((text * 2)[:each])
"""

PREPARE = """
import resource, sys
from pathlib import Path
from fairway.core.config import override
from fairway.data.manifest import DataConfig, prepare
settings = [f"source.path={sys.argv[1]}", "source.kind=text", "tokenizer.kind=bpe", "validation_fraction=0.01"]
manifest = prepare(DataConfig.read(override({}, settings)), Path(sys.argv[2]))
print(manifest.train.bytes + manifest.validation.bytes, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def prepared(folder: Path, size: int) -> tuple[int, int]:
    """Bytes of text that were prepared, and the most memory that took."""
    text = folder / "text"
    text.mkdir()
    subprocess.run([sys.executable, "-c", WRITE, text, str(size), str(AT_ONCE)], check=True)
    command = [sys.executable, "-c", PREPARE, text, folder / "data"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    kept, peak = map(int, done.stdout.split()[-2:])
    return kept, peak


@pytest.mark.slow
def test_a_gigabyte_of_text_is_prepared_in_less_than_a_gigabyte_of_memory(tmp_path: Path) -> None:
    kept, peak = prepared(tmp_path, GIGABYTE)
    assert kept > 0.99 * GIGABYTE
    assert peak < GIGABYTE
