"""Times the networks against their peers (`peer_networks.py`): ONNX Runtime for the embedders, facenet-pytorch for MTCNN.

networks.py WORKER MODELS MIRROR REPORT [--rounds N] [NAME...]

WORKER is the program of `cargo bench -p facepipe-vision --bench worker`. Writes `inception_b1_t1`, `inception_b8_t1`,
`inception_b1_t2`, `inception_b8_t2` (batch and threads; formula weights, for the speed does not hang on them),
`mobilefacenet_b1_t1` (ms a forward), `mtcnn_photo` (250x250), `mtcnn_scenes`, `mtcnn_crop` (150x150) and
`mtcnn_crop_filling` (ours looking only for faces that fill the crop; ms a picture, one thread) to the report, or those that
are named.

Ours and the peer's run in a process of their own each, on the same cores, and take turns, so that whatever else the machine
does meets both. The best of the rounds counts: it is what is least disturbed.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import time

import report

PAUSE_S = 0.05


class Worker:
    """A process that says `ready` once it is warm, then does the work once for each line, and answers with the ms."""

    def __init__(self, threads, command):
        cores = sorted(os.sched_getaffinity(0))[-threads:]
        command = ["taskset", "--cpu-list", ",".join(map(str, cores)), *map(str, command)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        # What else is printed before belongs to what the worker is made of.
        if not any(line.strip() == "ready" for line in self.process.stdout):
            sys.exit(f"{' '.join(command[3:6])} ended before it was ready")

    def sample(self):
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def peak_mb(self):
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) / 1024

    def end(self):
        self.process.stdin.close()
        self.process.wait()


def compare(name, threads, rounds, unit, ours, peer):
    workers = [Worker(threads, ours), Worker(threads, peer)]
    samples = [[], []]
    for turn in range(rounds):
        # Who goes first changes.
        for which in ([0, 1], [1, 0])[turn % 2]:
            # Threads of the other may still be waiting for more to do, busily.
            time.sleep(PAUSE_S)
            samples[which].append(workers[which].sample())
    memory = workers[0].peak_mb()
    for worker in workers:
        worker.end()
    (best, peer_best), (middle, peer_middle) = map(min, samples), map(statistics.median, samples)
    print(f"{name}: medians {middle:.2f} and {peer_middle:.2f} {unit}", flush=True)
    return report.entry(name, best, peer_best, unit, peer_best / best, memory)


def comparisons(options):
    """Name, threads, rounds, unit, and what follows the program in ours and in the peer's."""
    cache = pathlib.Path(__file__).parents[2] / ".runtime/peers"
    for threads in range(1, min(2, len(os.sched_getaffinity(0))) + 1):
        for batch, rounds in ((1, 40), (8, 15)):
            work = ["inception", batch, threads]
            yield f"inception_b{batch}_t{threads}", threads, rounds, "ms", work, [*work, cache]
    work = ["mobilefacenet", 1, 1]
    yield "mobilefacenet_b1_t1", 1, 80, "ms", work, [*work, options.models / "mobilefacenet.onnx"]
    photographs, scenes = sorted(options.mirror.glob("lfw10/*/*_0001.jpg")), sorted(options.mirror.glob("scenes/*.jpg"))
    for name, ours, theirs, files, rounds in (("photo", "photo", "photo", photographs, 15),
                                              ("scenes", "scenes", "scenes", scenes, 6),
                                              ("crop", "crop", "crop", photographs, 25),
                                              ("crop_filling", "filling", "crop", photographs, 25)):
        if files:
            yield f"mtcnn_{name}", 1, rounds, "ms/picture", ["mtcnn", ours, 1, *files], ["mtcnn", theirs, 1, *files]
        else:
            print(f"mtcnn_{name}: no pictures in {options.mirror}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("worker", "models", "mirror", "report"):
        parser.add_argument(name, type=pathlib.Path)
    parser.add_argument("--rounds", type=int, help="turns of each, instead of what suits the comparison")
    parser.add_argument("names", nargs="*", metavar="NAME")
    options = parser.parse_intermixed_args()
    peer = pathlib.Path(__file__).with_name("peer_networks.py")
    os.environ["FACEPIPE_MODELS"] = str(options.models.resolve())
    todo = [one for one in comparisons(options) if not options.names or one[0] in options.names]
    if not todo:
        sys.exit(f"there is no comparison {' '.join(options.names)}, or no data for it")
    for name, threads, rounds, unit, ours, theirs in todo:
        ours, theirs = [options.worker, *ours], [sys.executable, peer, *theirs]
        report.write(options.report, [compare(name, threads, options.rounds or rounds, unit, ours, theirs)])


if __name__ == "__main__":
    main()
