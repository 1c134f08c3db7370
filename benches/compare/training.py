"""Times training against scikit-learn (`peer_training.py`), embeddings given, on all processors that we may use.

training.py PROGRAM REPORT [--rounds N] [--whole] [NAME...]

PROGRAM is the program of `cargo bench -p facepipe-identify --bench training`. Writes `train_100x10` and `train_1000x10` (peer:
LinearSVC), `train_100x10_svc` and `train_1000x10_svc` (peer: SVC with a linear kernel and probabilities), seconds a training,
to the report, or those that are named.

Both train on the same clusters on the unit sphere of 512 dimensions, which PROGRAM writes. scikit-learn's classes run on one
thread, as they do unless told otherwise; LinearSVC knows nothing else.

A thousand people take scikit-learn many minutes. LinearSVC solves one problem a person after the other, SVC one a pair of
people, so some of them tell how long all take. With `--whole` all are solved, and the time is kept in .runtime/peers for this
kind of machine and taken from then on.

Ours and the peer's take turns, so that whatever else the machine does meets both. The best of the rounds counts: it is what
is least disturbed.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
PHOTOGRAPHS = 10
# Name, people, peer, rounds.
COMPARISONS = [
    ("train_100x10", 100, "LinearSVC", 5),
    ("train_100x10_svc", 100, "SVC", 5),
    ("train_1000x10", 1000, "LinearSVC", 2),
    ("train_1000x10_svc", 1000, "SVC", 2),
]


class Worker:
    """A process that says `ready` once it has its samples, then trains once for each line, and answers with the seconds."""

    def __init__(self, command):
        self.process = subprocess.Popen([str(part) for part in command], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True)
        if self.process.stdout.readline().strip() != "ready":
            sys.exit(f"{command[0]} ended before it was ready")

    def seconds(self):
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def peak_rss_mb(self):
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        kilobytes = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))
        return int(kilobytes) * 1024 / 1e6

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()


def compare(name, people, peer, rounds, options):
    folder = ROOT / "target/bench/training" / str(people)
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run([options.program, str(people), str(PHOTOGRAPHS), "--write", folder], check=True)
    whole = ["--whole"] if options.whole else []
    theirs = [sys.executable, pathlib.Path(__file__).with_name("peer_training.py"), peer, folder, PHOTOGRAPHS,
              ROOT / ".runtime/peers", *whole]
    samples = [[], []]
    with Worker([options.program, people, PHOTOGRAPHS, "--worker"]) as ours, Worker(theirs) as other:
        for turn in range(rounds):
            # Who goes first changes.
            for which in ([0, 1], [1, 0])[turn % 2]:
                samples[which].append((ours, other)[which].seconds())
        memory = ours.peak_rss_mb()
    ours, other = map(min, samples)
    return {"name": name, "ours": round(ours, 3), "peer": round(other, 3), "unit": "s",
            "ratio": round(other / ours, 2), "peak_rss_mb": round(memory, 1)}


def write(path, entry):
    """Puts the entry in the report, in the place of that of the same name."""
    there = json.loads(path.read_text()) if path.exists() else []
    whole = sorted([one for one in there if one["name"] != entry["name"]] + [entry], key=lambda one: one["name"])
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(whole, indent=2) + "\n")
    os.replace(part, path)
    print("{name:<28}{ours:>12.3f}{peer:>12.3f}  {unit:<14}{ratio:>8.2f}x{peak_rss_mb:>9.1f} MB".format(**entry),
          flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("program", "report"):
        parser.add_argument(name, type=pathlib.Path)
    parser.add_argument("--rounds", type=int, help="turns of each, instead of what suits the comparison")
    parser.add_argument("--whole", action="store_true", help="let the peer solve everything, if it takes an hour")
    parser.add_argument("names", nargs="*", metavar="NAME")
    options = parser.parse_args()
    todo = [one for one in COMPARISONS if not options.names or one[0] in options.names]
    if not todo:
        sys.exit(f"there is no comparison {' '.join(options.names)}")
    for name, people, peer, rounds in todo:
        write(options.report, compare(name, people, peer, options.rounds or rounds, options))


if __name__ == "__main__":
    main()
