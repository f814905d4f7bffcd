"""Run benchmarks and write their figures: ``python -m tests.benchmarks [name ...]``; nothing else should run then."""

from __future__ import annotations

import importlib
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import torch

HERE = Path(__file__).parent
HEAD = """# Benchmarks

Ratios of two sides run in turn in one process; below 1 zoo is faster. Times are medians in milliseconds.
"""


def machine() -> str:
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
        model += " with AMX" if any("amx" in line for line in lines) else ""
    return f"{model}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}"


def main(names: list[str]) -> None:
    files = sorted(p.stem for p in HERE.glob("bench_*.py"))
    chosen = [f"bench_{n.removeprefix('bench_')}" for n in names] or files
    if unknown := set(chosen) - set(files):
        sys.exit(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(files)}")
    path = HERE / "RESULTS.md"
    sections = dict(s.split("\n", 1) for s in path.read_text().split("\n## ")[1:]) if path.exists() else {}
    for name in chosen:
        began = time.strftime("%Y-%m-%d")
        rows = importlib.import_module(f"tests.benchmarks.{name}").run()
        if not rows:  # it has said what it lacks
            continue
        lines = ["| what | zoo | other | other's | ratio | target |", "|---|---|---|---|---|---|"]
        for row in rows:
            target = f"{row['target']:.3g}" if row.get("target") is not None else ""
            target += ", not reached" if target and row["ratio"] > row["target"] else ""
            cells = [row["name"], f"{row['ours_ms']:.3f}", row["peer"], f"{row['peer_ms']:.3f}", f"{row['ratio']:.3f}"]
            lines.append("| " + " | ".join([*cells, target]) + " |")
            print(lines[-1], flush=True)
        lines += [f"\n{row['note']}" for row in rows if row.get("note")]
        head = (
            f"\n{began}, {machine()}, `python -m tests.benchmarks {name.removeprefix('bench_')}`, commit {commit()}\n\n"
        )
        sections[name] = head + "\n".join(lines) + "\n"
        new = path.with_suffix(".new")
        new.write_text(HEAD + "".join(f"\n## {k}\n{v.rstrip()}\n" for k, v in sorted(sections.items())))
        os.replace(new, path)


def commit() -> str:
    done = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=HERE)
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    main(sys.argv[1:])
