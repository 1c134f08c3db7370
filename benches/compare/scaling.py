"""How we and our peers scale, as plots: with clients, with replicas, with the size of the gallery, with the database.

scaling.py BUILD_FOLDER MODELS MIRROR REPORT --searcher PROGRAM --store PROGRAM [--seconds S] [--plots FOLDER] [NAME...]

Draws into FOLDER, target/bench by default, and prints as tables, all of these or those that are named:

* `clients`: get-results of a crop per second with 1 to 64 clients, of one server of each kind;
* `replicas`: the same with 1 to 8 replicas behind nginx, on PostgreSQL, and with as many workers of the peer, 16 clients;
* `gallery`: searches of one embedding (512 values) per second among 10 to 100,000 people, on one thread, against the same
  arithmetic in NumPy;
* `databases`: detections per second that each database takes, from 1 to 32 clients, recognition left out. PostgreSQL and
  MariaDB run as scripts/databases.sh starts them, which does not wait for the disk.

SEARCHER is the program of `cargo bench -p facepipe-identify --bench training`, STORE that of `cargo bench -p
facepipe-backend --bench store`.
"""

import argparse
import contextlib
import datetime
import json
import os
import pathlib
import platform
import subprocess
import tempfile
import time

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import numpy as np

from servers import Balancer, Bench, Databases, models_with_inception, pictures

CLIENTS = (1, 2, 4, 8, 16, 32, 64)
REPLICAS = (1, 2, 4, 8)
REPLICAS_CLIENTS = 16
PEOPLE = (10, 100, 1_000, 10_000, 100_000)
STORE_CLIENTS = (1, 2, 4, 8, 16, 32)
INCEPTION, MOBILEFACENET = "inception-resnet-v1", "mobilefacenet"


def machine():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return f"{line.split(':')[1].strip()}, {len(os.sched_getaffinity(0))} cores"
    return f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores"


def draw(options, name, title, across, up, lines, logarithmic=False):
    """`lines`: by label, up by across."""
    plt.rcParams["svg.hashsalt"] = name
    figure, axes = plt.subplots(figsize=(7, 4.2))
    for label, points in lines.items():
        axes.plot(list(points), list(points.values()), marker="o", label=label)
    axes.set_xscale("log", base=10 if logarithmic else 2)
    ticks = sorted({at for points in lines.values() for at in points})
    axes.set_xticks(ticks, [f"{at:,}" for at in ticks])
    axes.minorticks_off()
    if logarithmic:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.set(title=title, xlabel=across, ylabel=up)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.text(0.99, 0.01, f"{machine()}, {datetime.date.today()}", ha="right", size=7, alpha=0.7)
    figure.tight_layout()
    options.plots.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.plots / f"scaling-{name}.svg", metadata={"Date": None})
    plt.close(figure)
    print(f"\n{title} ({up})")
    print(f"{across:<34}" + "".join(f"{at:>10,}" for at in ticks))
    for label, points in lines.items():
        print(f"{label:<34}" + "".join(f"{points[at]:>10.1f}" if at in points else " " * 10 for at in ticks), flush=True)


def rate(bench, server, picture, clients):
    row = bench.load(server, picture, "--concurrency", str(clients), "--duration", str(bench.options.seconds))
    return row["requests_per_second"]


def enrolled(bench, server):
    bench.facepipe(server, "enroll", "tree", bench.options.mirror / "lfw10", "--train")
    return server


def clients(bench, crop, models):
    lines = {}
    kinds = (("facepipe, Inception-ResNet v1", lambda: bench.ours(INCEPTION, models)),
             ("facepipe, MobileFaceNet", lambda: bench.ours(MOBILEFACENET, models)),
             ("Flask, facenet-pytorch, 2 workers", bench.peer))
    for label, start in kinds:
        with start() as server:
            if label.startswith("facepipe"):
                enrolled(bench, server)
            lines[label] = {count: rate(bench, server, crop, count) for count in CLIENTS}
    draw(bench.options, "clients", "get-results of a 150x150 crop", "clients", "requests/s", lines)


def replicas(bench, crop, models):
    lines = {}
    with Databases() as databases:
        for embedder, label in ((INCEPTION, "facepipe, Inception-ResNet v1"), (MOBILEFACENET, "facepipe, MobileFaceNet")):
            more = ("--database-url", databases.new_postgres(f"replicas_{embedder.replace('-', '_')}"))
            lines[label] = {}
            for count in REPLICAS:
                with contextlib.ExitStack() as stack:
                    servers = [stack.enter_context(bench.ours(embedder, models, *more)) for _ in range(count)]
                    if count == REPLICAS[0]:
                        enrolled(bench, servers[0])
                    balancer = stack.enter_context(Balancer(servers, bench.folder))
                    lines[label][count] = rate(bench, balancer, crop, REPLICAS_CLIENTS)
    label = "Flask, facenet-pytorch, workers"
    lines[label] = {}
    for count in REPLICAS:
        with bench.peer(count) as server:
            lines[label][count] = rate(bench, server, crop, REPLICAS_CLIENTS)
    draw(bench.options, "replicas", f"get-results of a 150x150 crop, {REPLICAS_CLIENTS} clients", "replicas", "requests/s", lines)


def numpy_searches(count, seconds):
    """The same arithmetic: a hyperplane's value, a calibrated probability, their ranking, the cosine to the best's mean."""
    random = np.random.default_rng(7)
    means = random.standard_normal((count, 512), dtype=np.float32)
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    labels = [f"{person:06}" for person in range(count)]
    begun, searches = time.monotonic(), 0
    while time.monotonic() - begun < seconds:
        embedding = means[searches % count]
        logs = -np.logaddexp(0, -8.0 * (means @ embedding).astype(np.float64) + 4.0)
        probabilities = np.exp(logs - logs.max())
        probabilities /= probabilities.sum()
        order = np.argsort(-probabilities, kind="stable")
        answer = [(labels[person], probabilities[person]) for person in order]
        assert answer[0][0] == labels[searches % count] and means[order[0]] @ embedding > 0.9
        searches += 1
    return searches / (time.monotonic() - begun)


def gallery(bench, *_):
    ours, theirs = {}, {}
    for count in PEOPLE:
        command = [bench.options.searcher, str(count), "1", "--search", str(bench.options.seconds)]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        ours[count] = json.loads(told)["searches_per_second"]
        theirs[count] = numpy_searches(count, bench.options.seconds)
    draw(bench.options, "gallery", "Searches among people, one thread", "people in the gallery", "searches/s",
         {"facepipe": ours, "NumPy": theirs}, logarithmic=True)


def databases(bench, *_):
    lines = {}
    with Databases() as servers:
        for label, url in (("SQLite", f"sqlite://{bench.folder}/store.db"), ("PostgreSQL", servers.new_postgres("store")),
                           ("MariaDB", servers.new_mysql("store"))):
            lines[label] = {}
            for count in STORE_CLIENTS:
                command = [bench.options.store, url, str(bench.options.seconds), str(count)]
                told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                lines[label][count] = json.loads(told)["detections_per_second"]
    draw(bench.options, "databases", "Detections into each database", "clients", "detections/s", lines)


PARTS = {part.__name__: part for part in (clients, replicas, gallery, databases)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("build", "models", "mirror", "report"):
        parser.add_argument(name, type=pathlib.Path)
    parser.add_argument("--searcher", type=pathlib.Path, required=True)
    parser.add_argument("--store", type=pathlib.Path, required=True)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--plots", type=pathlib.Path, default=pathlib.Path("target/bench"))
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(PARTS))
    options = parser.parse_intermixed_args()
    if unknown := [name for name in options.names if name not in PARTS]:
        parser.error(f"there is no {unknown[0]}: {', '.join(PARTS)}")
    with tempfile.TemporaryDirectory() as folder:
        pathlib.Path(folder).chmod(0o755)
        bench = Bench(options, folder)
        _, crop = pictures(options.mirror, bench.folder)
        models = models_with_inception(options.models, bench.folder)
        for name in options.names or PARTS:
            PARTS[name](bench, crop, models)


if __name__ == "__main__":
    main()
