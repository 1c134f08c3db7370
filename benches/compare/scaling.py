"""How we and our peers scale, as plots: with clients, with replicas, with the database. With the gallery: gallery.py.

scaling.py BUILD_FOLDER MODELS MIRROR REPORT --store PROGRAM [--seconds S] [--plots FOLDER] [NAME...]

Draws into FOLDER, target/bench by default, and prints as tables, all of these or those that are named:

* `clients`: get-results of a crop per second with 1 to 64 clients, of one server of each kind;
* `replicas`: the same with 1 to 8 replicas behind nginx, on PostgreSQL, and with as many workers of the peer, 16 clients;
* `databases`: detections per second that each database takes, from 1 to 32 clients, recognition left out. PostgreSQL and
  MariaDB run as scripts/databases.sh starts them, which does not wait for the disk.

STORE is the program of `cargo bench -p facepipe-backend --bench store`.
"""

import argparse
import contextlib
import json
import pathlib
import subprocess
import tempfile

from plots import draw
from servers import Balancer, Bench, Databases, models_with_inception, pictures

CLIENTS = (1, 2, 4, 8, 16, 32, 64)
REPLICAS = (1, 2, 4, 8)
REPLICAS_CLIENTS = 16
STORE_CLIENTS = (1, 2, 4, 8, 16, 32)
INCEPTION, MOBILEFACENET = "inception-resnet-v1", "mobilefacenet"


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


PARTS = {part.__name__: part for part in (clients, replicas, databases)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("build", "models", "mirror", "report"):
        parser.add_argument(name, type=pathlib.Path)
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
