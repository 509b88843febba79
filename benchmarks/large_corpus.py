"""How fast prepare.py turns a large text into tokens, and how much memory it takes.

    python benchmarks/large_corpus.py            2 GB, made from the KJV text, in a scratch folder
    python benchmarks/large_corpus.py --megabytes 200

Every copy of the book gets some different names: a tenth of its capitalised words are respelled.
All other words are the same, which suits the tokenizer. The scratch folder needs 1.5 times as much
room as the text. Memory is that of all processes together, sampled ten times a
second; pages of the files themselves, which the system may drop at any time, are not counted.
"""

import argparse
import contextlib
import random
import re
import sys
import tempfile
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from corpus import load_text  # noqa: E402


def write_text(path, megabytes):
    """About that much text."""
    text, draw = load_text("kjv", ROOT / "data"), random.Random(0)
    names, n_bytes = sorted(set(re.findall(r"[A-Z][a-z]{3,}", text))), 0
    with path.open("wb") as file:
        while n_bytes < megabytes * 1_000_000:
            chosen = draw.sample(names, len(names) // 10)
            new = {name: name[0] + "".join(draw.sample(name[1:], len(name) - 1)) for name in chosen}
            data = re.sub(r"[A-Z][a-z]{3,}", lambda m: new.get(m[0], m[0]), text)  # noqa: B023
            n_bytes += file.write(data.encode("utf-8"))
    return n_bytes


def memory(process):
    """Private memory of a process (psutil's) and its children, in bytes."""
    total = 0
    with contextlib.suppress(psutil.Error):  # one has just ended
        for each in (process, *process.children(recursive=True)):
            info = each.memory_info()
            total += info.rss - getattr(info, "shared", 0)
    return total


def main(argv=None):
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=2000)
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "large.txt"
        n_bytes = write_text(source, arguments.megabytes)
        command = [sys.executable, "prepare.py", str(source), "--out", str(Path(folder) / "tokens")]
        start = time.perf_counter()
        process = psutil.Popen(command, cwd=ROOT)
        peak = 0
        while process.poll() is None:
            peak = max(peak, memory(process))
            time.sleep(0.1)
        seconds = time.perf_counter() - start
        if process.returncode:
            return process.returncode
        stored = sum(path.stat().st_size for path in (Path(folder) / "tokens").glob("*.bin"))
    print("| text | time | speed | peak memory, all processes | stored |")
    print("|---:|---:|---:|---:|---:|")
    print(
        f"| {n_bytes / 1e6:,.0f} MB | {seconds:.0f} s | {n_bytes / 1e6 / seconds:.1f} MB/s "
        f"| {peak / 1e9:.2f} GB | {stored / 1e6:,.0f} MB |"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
