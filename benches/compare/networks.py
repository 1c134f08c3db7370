"""Embedders against ONNX Runtime, MTCNN against facenet-pytorch, on one and two threads of the same machine."""

import glob
import json
import os
import pathlib
import subprocess

from compare import ROOT, Entry, Worker

PYTHON = ROOT / ".runtime/tools/peers/bin/python"
PEER = ROOT / "benches/compare/peer_networks.py"
CACHE = ROOT / ".runtime/peers"


def built(package, bench):
    """The program of a benchmark, built if need be."""
    command = ["cargo", "bench", "--locked", "--no-run", "--message-format=json", "-p", package, "--bench", bench]
    messages = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    programs = [json.loads(line) for line in messages.splitlines() if line.startswith("{")]
    return next(p["executable"] for p in programs
                if p.get("reason") == "compiler-artifact" and p["target"]["name"] == bench and p.get("executable"))


def data(pattern):
    """Files of the test data, by their path as in the mirror: what `facepipe models fetch` brought, or the mirror."""
    folders = [pathlib.Path(os.environ.get("FACEPIPE_MODELS", ROOT / "models")) / "assets"]
    if mirror := os.environ.get("FACEPIPE_MIRROR"):
        folders.append(pathlib.Path(mirror))
    return next((found for folder in folders if (found := sorted(glob.glob(str(folder / pattern))))), [])


def pinned(threads):
    """The last of the processors that we may use, as many as there are threads: both sides have the same."""
    mine = sorted(os.sched_getaffinity(0))
    return ["taskset", "--cpu-list", ",".join(map(str, mine[-threads:]))]


def entries():
    worker = built("facepipe-vision", "worker")
    models = pathlib.Path(os.environ.get("FACEPIPE_MODELS", ROOT / "models"))

    def entry(name, threads, ours, peer, unit, rounds):
        return Entry(name, unit,
                     lambda: Worker([*pinned(threads), worker, *ours]),
                     lambda: Worker([*pinned(threads), PYTHON, PEER, *peer]), rounds)

    processors = len(os.sched_getaffinity(0))
    for threads in (1, 2):
        for batch, rounds in ((1, 40), (8, 15)):
            if threads <= processors:
                name = f"inception_b{batch}_t{threads}"
                work = ["inception", batch, threads]
                yield entry(name, threads, work, [*work, CACHE], "ms", rounds)
    model = models / "mobilefacenet.onnx"
    if model.exists():
        work = ["mobilefacenet", 1, 1]
        yield entry("mobilefacenet_b1_t1", 1, work, [*work, model], "ms", 60)
    photographs = data("lfw10/*/*_0001.jpg")
    for name, kind, files, rounds in (("mtcnn_photo", "photo", photographs, 15),
                                      ("mtcnn_scenes", "scenes", data("scenes/*.jpg"), 6),
                                      ("mtcnn_crop", "crop", photographs, 25)):
        if files and (models / "pnet.pt").exists():
            work = ["mtcnn", kind, 1, *files]
            yield entry(name, 1, work, work, "ms/picture", rounds)
