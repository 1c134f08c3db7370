"""Training against scikit-learn, embeddings given, on all processors that we may use.

Both train on the same clusters on the unit sphere of 512 dimensions, which our benchmark writes. scikit-learn's classes run
on one thread: that is what they do with `n_jobs` unset, and `LinearSVC` has nothing else.

A thousand people take scikit-learn many minutes. `LinearSVC` solves one problem a person after the other, `SVC` one a pair
of people, so a sample of them tells how long all take; with FACEPIPE_WHOLE_PEERS=1 all are solved, and the time is kept
for this kind of machine and taken from then on.
"""

import subprocess

from compare import ROOT, Entry, Worker
from networks import PYTHON, built

PEER = ROOT / "benches/compare/peer_training.py"
CACHE = ROOT / ".runtime/peers"
DATA = ROOT / "target/bench/training"
PHOTOGRAPHS = 10


def entries():
    program = built("facepipe-identify", "training")

    def entry(name, people, peer, rounds):
        def start_peer():
            folder = DATA / str(people)
            folder.mkdir(parents=True, exist_ok=True)
            subprocess.run([program, str(people), str(PHOTOGRAPHS), "--write", folder], check=True)
            return Worker([PYTHON, PEER, peer, folder, PHOTOGRAPHS, CACHE])

        return Entry(name, "s", lambda: Worker([program, people, PHOTOGRAPHS, "--worker"]), start_peer, rounds)

    yield entry("train_100x10", 100, "LinearSVC", 5)
    yield entry("train_100x10_svc", 100, "SVC", 5)
    yield entry("train_1000x10", 1000, "LinearSVC", 2)
    yield entry("train_1000x10_svc", 1000, "SVC", 2)
