"""Peak memory and speed of preparing a corpus, at two sizes: a corpus larger than memory must cost no more memory than a small one.

Text: the .py files installed here (standard library and site-packages), each one document, repeated with a running number until the
size is reached; half the bytes in one .jsonl, half in .jsonl.gz. Each size is prepared in a fresh process whose private memory
(RLIMIT_DATA) is capped below the larger corpus. Writes benchmarks/results/data_memory.json.

    python benchmarks/data_memory.py [--sizes-mb 30 320] [--limit-mb 300]
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

RESULT = Path(__file__).parent / "results" / "data_memory.json"
VOCAB_SIZE, SEQUENCE_TOKENS, NUM_SEQUENCES, NUM_STEPS = 4096, 256, 32, 200


def real_text() -> Iterator[str]:
    """Every installed source file, over and over, told apart by a first line."""
    import sysconfig

    paths = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")) + sorted(Path(sysconfig.get_paths()["purelib"]).rglob("*.py"))
    number = 0
    while True:
        for path in paths:
            number += 1
            yield f"# {number}\n" + path.read_text(encoding="utf-8", errors="replace")


def write_corpus(folder: Path, size_bytes: int) -> None:
    """A plain and a compressed file of half of ``size_bytes`` of text each."""
    texts = real_text()
    with (folder / "a.jsonl").open("wb") as plain, gzip.open(folder / "b.jsonl.gz", "wb", compresslevel=1) as packed:
        for file in (plain, packed):
            written = 0
            while written < size_bytes / 2:
                written += file.write(json.dumps({"text": next(texts)}).encode() + b"\n")


def child(folder: Path, limit_bytes: int) -> None:
    """Prepares and reads the corpus under the limit; prints the figures."""
    resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, limit_bytes))
    from colossus.spec.job import DataSpec
    from colossus.train.data import open_dataset, prepare

    before = peak_bytes()
    spec = DataSpec(sources=[str(folder / "text")])
    corpus = prepare(spec, folder / "cache", vocab_size=VOCAB_SIZE, sequence_tokens=SEQUENCE_TOKENS)
    prepared, cpu_s = peak_bytes(), time.process_time()
    started = time.perf_counter()
    data = open_dataset(corpus.folder, sequence_tokens=SEQUENCE_TOKENS, num_sequences=NUM_SEQUENCES, seed=0, verify=True)
    opened = time.perf_counter()
    for step in range(NUM_STEPS):
        data.batch(step, range(NUM_SEQUENCES))
    read = time.perf_counter()
    figures = {
        "text_bytes": corpus.num_text_bytes,
        "num_tokens": corpus.num_train_tokens + corpus.num_validation_tokens,
        "prepare_s": corpus.duration_s,
        "prepare_cpu_s": cpu_s,
        "prepare_bytes_per_s": corpus.num_text_bytes / corpus.duration_s,
        "prepare_bytes_per_cpu_s": corpus.num_text_bytes / cpu_s,
        "peak_rss_before_bytes": before,
        "peak_rss_prepare_bytes": prepared,
        "peak_rss_bytes": peak_bytes(),
        "open_and_verify_s": opened - started,
        "batch_s": (read - opened) / NUM_STEPS,
    }
    print(json.dumps(figures))


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(size_bytes: int, limit_bytes: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "text").mkdir()
        write_corpus(folder / "text", size_bytes)
        command = [sys.executable, __file__, "--child", name, "--limit-mb", str(limit_bytes // 10**6)]
        figures = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout)
    print(json.dumps(figures), file=sys.stderr)
    return figures


def machine() -> dict[str, object]:
    names = (line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    return {"cpu": next(names, platform.machine()), "num_cores": os.cpu_count(), "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes-mb", type=int, nargs="+", default=[30, 320])
    parser.add_argument("--limit-mb", type=int, default=300)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    limit_bytes = arguments.limit_mb * 10**6
    if arguments.child:
        return child(arguments.child, limit_bytes)
    loads = os.getloadavg()
    runs = [measure(size * 10**6, limit_bytes) for size in arguments.sizes_mb]
    result = {
        "command": "python " + " ".join(["benchmarks/data_memory.py", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "load_average_at_start": loads[0],
        "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in ("numpy", "tokenizers")}},
        "private_memory_limit_bytes": limit_bytes,
        "vocab_size": VOCAB_SIZE,
        "batch": {"num_sequences": NUM_SEQUENCES, "sequence_tokens": SEQUENCE_TOKENS},
        "runs": runs,
        "peak_rss_largest_over_smallest": runs[-1]["peak_rss_prepare_bytes"] / runs[0]["peak_rss_prepare_bytes"],
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(RESULT)
    return None


if __name__ == "__main__":
    main()
