#!/usr/bin/env python3
"""Times us and a peer side by side and writes what came out to a report.

compare.py [--rounds N] [--report FILE] [NAME...]      (all names, unless some are given)

Each module in MODULES has `entries()`, which gives `Entry` objects. What is ours and what is the peer's runs in a process
of its own each, which says `ready` once it is warm and then does the work once for each line that it reads, and answers
with what it measured. They take turns, so that whatever else the machine does meets both. The best of the rounds counts:
it is what is least disturbed.

The report is a list of `{"name", "ours", "peer", "unit", "ratio", "peak_rss_mb"}`; `ratio` says how many times better than
the peer we are, above 1 is ahead. Entries of other names stay in it.
"""

import argparse
import importlib
import json
import pathlib
import statistics
import subprocess
import sys

# A further module of comparisons is a file beside this one, named here.
MODULES = ["networks"]

ROOT = pathlib.Path(__file__).resolve().parents[2]


class Worker:
    """A process that does the work once for each line that it reads."""

    def __init__(self, command, environment=None):
        self.command = [str(part) for part in command]
        self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                        cwd=ROOT, env=environment)
        # What is printed before belongs to what the worker is made of.
        for line in self.process.stdout:
            if line.strip() == "ready":
                return
        raise RuntimeError(f"{' '.join(self.command[:4])} ended before it was ready")

    def sample(self):
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def peak_rss_mb(self):
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        kilobytes = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))
        return int(kilobytes) / 1024

    def end(self):
        self.process.stdin.close()
        self.process.wait(timeout=60)


class Entry:
    """One line of the report. `ours` and `peer` start a worker; `higher` says whether more of `unit` is better."""

    def __init__(self, name, unit, ours, peer, rounds=15, higher=False):
        self.name, self.unit, self.rounds, self.higher = name, unit, rounds, higher
        self.ours, self.peer = ours, peer

    def run(self, rounds=None):
        workers = []
        try:
            workers = [self.ours()]
            workers.append(self.peer())
            samples = [[], []]
            for turn in range(rounds or self.rounds):
                # Who goes first changes.
                for which in ([0, 1], [1, 0])[turn % 2]:
                    samples[which].append(workers[which].sample())
            memory = workers[0].peak_rss_mb()
        finally:
            for worker in workers:
                worker.end()
        best = max if self.higher else min
        ours, peer = (best(side) for side in samples)
        medians = [round(statistics.median(side), 3) for side in samples]
        ratio = ours / peer if self.higher else peer / ours
        entry = {"name": self.name, "ours": round(ours, 3), "peer": round(peer, 3), "unit": self.unit,
                 "ratio": round(ratio, 3), "peak_rss_mb": round(memory, 1)}
        print(f"{self.name:20} {ours:9.2f} {peer:9.2f} {self.unit:12} ratio {ratio:6.2f}  "
              f"(medians {medians[0]} and {medians[1]}), {memory:.0f} MB", flush=True)
        return entry


def merge(report, entries):
    """Puts `entries` in the place of those of their names, or at the end."""
    known = json.loads(report.read_text()) if report.exists() else []
    by_name = {entry["name"]: entry for entry in known} | {entry["name"]: entry for entry in entries}
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text(json.dumps(list(by_name.values()), indent=1) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, help="turns of each, instead of what the comparison itself says")
    parser.add_argument("--report", type=pathlib.Path, default=ROOT / "target/bench/report.json")
    parser.add_argument("names", nargs="*", metavar="NAME")
    arguments = parser.parse_args()

    entries = [entry for module in MODULES for entry in importlib.import_module(module).entries()]
    unknown = set(arguments.names) - {entry.name for entry in entries}
    if unknown:
        sys.exit(f"There is no comparison {', '.join(sorted(unknown))}, or its data is missing.")
    failed = False
    for entry in entries:
        if arguments.names and entry.name not in arguments.names:
            continue
        try:
            merge(arguments.report, [entry.run(arguments.rounds)])
        except (RuntimeError, ValueError, OSError) as error:
            print(f"{entry.name}: {error}", file=sys.stderr)
            failed = True
    sys.exit(failed)


if __name__ == "__main__":
    # The modules import this file by its name.
    sys.modules["compare"] = sys.modules["__main__"]
    main()
