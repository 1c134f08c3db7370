"""scikit-learn's linear classifiers, one training a line: what `training.py` times ours against.

peer_training.py LinearSVC|SVC FOLDER PHOTOGRAPHS CACHE [--whole]

FOLDER holds `train.f32` and `test.f32`, singles `[people, PHOTOGRAPHS and 2, 512]`. Says `ready`, then for each line that it
reads, trains once and answers with the seconds. More than SAMPLE people are trained on only in part, and the time is that of
the part times how much more there is, unless CACHE has the time of a whole training on this machine, or
`--whole` asks for one. The accuracy of whole trainings goes to the standard error.
"""

import json
import os
import pathlib
import platform
import sys
import time
import warnings

import numpy as np
import sklearn
from sklearn.svm import SVC, LinearSVC

DIMENSIONS = 512
HELD_OUT = 2
# People of whom a part is made where there are more.
SAMPLE = 100
# Problems of one person against all others that are solved of them.
PROBLEMS = 20


def processor():
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {len(os.sched_getaffinity(0))} processors"


class Peer:
    def __init__(self, kind, folder, photographs, cache, whole):
        self.kind, self.cache, self.may_be_long = kind, pathlib.Path(cache) / "training.json", whole
        self.records, self.labels = self.read(folder, "train.f32", photographs)
        self.unseen = self.read(folder, "test.f32", HELD_OUT)
        self.people = int(self.labels[-1]) + 1
        self.key = f"{kind}, {self.people} x {photographs}, scikit-learn {sklearn.__version__}, {processor()}"

    @staticmethod
    def read(folder, name, each):
        records = np.fromfile(pathlib.Path(folder) / name, np.float32).reshape(-1, DIMENSIONS).astype(np.float64)
        return records, np.arange(len(records)) // each

    def machine(self):
        return SVC(kernel="linear", probability=True) if self.kind == "SVC" else LinearSVC()

    def whole(self):
        machine = self.machine()
        start = time.perf_counter()
        machine.fit(self.records, self.labels)
        seconds = time.perf_counter() - start
        print(f"{self.key}: {seconds:.1f} s, accuracy {machine.score(*self.unseen):.4f}", file=sys.stderr, flush=True)
        return seconds

    def part(self):
        if self.kind == "LinearSVC":
            chosen = np.linspace(0, self.people - 1, PROBLEMS).astype(int)
            start = time.perf_counter()
            for person in chosen:
                self.machine().fit(self.records, self.labels == person)
            return (time.perf_counter() - start) * self.people / PROBLEMS
        rows = self.labels < SAMPLE
        start = time.perf_counter()
        self.machine().fit(self.records[rows], self.labels[rows])
        pairs = self.people * (self.people - 1) / (SAMPLE * (SAMPLE - 1))
        return (time.perf_counter() - start) * pairs

    def seconds(self):
        if self.people <= SAMPLE:
            return self.whole()
        known = json.loads(self.cache.read_text()) if self.cache.exists() else {}
        if self.key not in known:
            if not self.may_be_long:
                return self.part()
            known[self.key] = self.whole()
            self.cache.parent.mkdir(parents=True, exist_ok=True)
            self.cache.write_text(json.dumps(known, indent=1) + "\n")
        return known[self.key]


def main():
    warnings.simplefilter("ignore", FutureWarning)
    kind, folder, photographs, cache, *whole = sys.argv[1:]
    peer = Peer(kind, folder, int(photographs), cache, whole == ["--whole"])
    print("ready", flush=True)
    for _ in sys.stdin:
        print(peer.seconds(), flush=True)


if __name__ == "__main__":
    main()
