"""How soon `zoo --help` and `zoo list` answer, against `import lightning.pytorch`: whole processes, interleaved."""

import statistics
import subprocess
import sys
import time

PEER = ["-c", "import lightning.pytorch"]
OURS = {"zoo --help": ["-m", "zoo", "--help"], "zoo list": ["-m", "zoo", "list"]}
TARGET = 0.15


def milliseconds(args: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *args], check=True, stdout=subprocess.DEVNULL)
    return 1000 * (time.perf_counter() - start)


def run(rounds: int = 5) -> list[dict]:
    """Time each command once per round, after one round that fills the file cache; report medians."""
    commands = {**OURS, "import lightning.pytorch": PEER}
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds + 1):
        for name, args in commands.items():
            times[name].append(milliseconds(args))
    medians = {name: statistics.median(values[1:]) for name, values in times.items()}
    peer, peer_ms = medians.popitem()
    return [
        {"name": name, "ours_ms": ms, "peer": peer, "peer_ms": peer_ms, "ratio": ms / peer_ms, "target": TARGET}
        for name, ms in medians.items()
    ]


if __name__ == "__main__":
    for r in run():
        print("{name}: {ours_ms:.0f} ms, {peer}: {peer_ms:.0f} ms, ratio {ratio:.3f} (at most {target})".format(**r))
