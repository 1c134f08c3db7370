"""Counts the instructions of our networks with callgrind: a number that other processes on the machine do not change.

instructions.py WORKER MIRROR [NAME...]

Prints, for each workload, millions of instructions for one run of it, loading left out: the difference between two runs
and one. The small networks take a minute each, Inception-ResNet v1 takes many, most of them its loading; with eight faces
(inception_b8_t1) it is only run where it is named. Where these grow, work was added, however noisy the times are; vectors of
eight and of sixteen count once each.
"""

import argparse
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile


def instructions(worker, work, runs):
    with tempfile.TemporaryDirectory() as folder:
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={folder}/out", str(worker), *map(str, work)]
        done = subprocess.run(command, input="go\n" * runs, capture_output=True, text=True)
    counted = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode or not counted:
        sys.exit(f"{' '.join(command)}: {done.stderr[-500:]}")
    return int(counted[1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("worker", type=pathlib.Path)
    parser.add_argument("mirror", type=pathlib.Path)
    parser.add_argument("names", nargs="*", metavar="NAME")
    options = parser.parse_args()
    if not shutil.which("valgrind"):
        sys.exit("valgrind is missing: apt-get install valgrind")
    photograph = options.mirror / "lfw10/Tony_Blair/Tony_Blair_0001.jpg"
    workloads = {
        "mobilefacenet_b1_t1": ["mobilefacenet", 1, 1],
        "mtcnn_photo": ["mtcnn", "photo", 1, photograph],
        "mtcnn_crop": ["mtcnn", "crop", 1, photograph],
        "mtcnn_crop_filling": ["mtcnn", "filling", 1, photograph],
        "inception_b1_t1": ["inception", 1, 1],
        "inception_b8_t1": ["inception", 8, 1],
    }
    for name, work in workloads.items():
        if name not in (options.names or workloads.keys() - {"inception_b8_t1"}):
            continue
        once, twice = (instructions(options.worker, work, runs) for runs in (1, 2))
        print(f"{name:<24}{(twice - once) / 1e6:>10.1f} million instructions", flush=True)


if __name__ == "__main__":
    main()
