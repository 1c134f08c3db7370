"""Times our backend against the usual Python stack (`peer_backend.py`), both up at once, load on one after the other.

serving.py BUILD_FOLDER MODELS MIRROR REPORT [--rounds N] [--seconds S] [--overload S]

`facepipe bench load` makes the load on both: 8 clients, each with one picture a request. Writes to the report:

* `serve_photo`, `serve_crop`, and the same ending in `_mobilefacenet`: requests per second;
* `serve_memory`: MB of a process at its most;
* `serve_latency`: our p99 against the peer's p50, ms;
* `serve_cold_start`: seconds from the start of the process to its first answer;
* `serve_overload`: p99 of what was accepted, against twice the queue's budget, seconds, at four times what the server can
  do, for --overload seconds; `serve_overload_memory`: MB at its end against those after a quarter of it;
* `serve_hangups`: requests per second while other clients send as many requests and hang up at once, against those without;
* `new_person`: seconds to enrol one person with 12 photographs, train, and have two replicas know them, against the 26 s
  of the thesis that this project grew out of, whose Python service ran on two virtual processors.
"""

import argparse
import concurrent.futures
import json
import pathlib
import socket
import statistics
import tempfile
import threading
import time
import urllib.parse

import report
from servers import Bench, Databases, best, memory_mb, models_with_inception, pictures

QUEUE_BUDGET_S = 5.0
# Seconds that the thesis' service took for a person more.
THESIS_NEW_PERSON_S = 26.0


def form(fields):
    """Body and type of a multipart form of (name, content) whose files are JPEGs."""
    boundary = "----facepipe-benchmark"
    parts = b"".join(b"--%b\r\nContent-Disposition: form-data; name=\"%b\"; filename=\"a.jpg\"\r\n"
                     b"Content-Type: image/jpeg\r\n\r\n%b\r\n" % (boundary.encode(), name.encode(), content)
                     for name, content in fields)
    return parts + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


class HangUps:
    """Clients that send whole requests and hang up without waiting for the answer, until the end of the `with`."""

    def __init__(self, server, picture, per_second):
        parsed = urllib.parse.urlparse(server.url)
        body, kind = form([("image", picture.read_bytes())])
        self.address, self.per_second = (parsed.hostname, parsed.port), per_second
        self.request = (f"POST /face-recognition/get-results HTTP/1.1\r\nHost: a\r\nContent-Type: {kind}\r\n"
                        f"Content-Length: {len(body)}\r\n\r\n").encode() + body
        self.ended, self.sent = threading.Event(), 0

    def run(self):
        begun = time.monotonic()
        while not self.ended.wait(max(0, begun + self.sent / self.per_second - time.monotonic())):
            with socket.create_connection(self.address) as connection:
                connection.sendall(self.request)
            self.sent += 1

    def __enter__(self):
        self.thread = threading.Thread(target=self.run)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        self.thread.join()


def new_person(bench, models, people, report_entries):
    """Two replicas on PostgreSQL know nine people; the tenth comes."""
    import io

    import requests
    from PIL import Image, ImageOps

    *known, newcomer = sorted(folder for folder in people.iterdir() if folder.is_dir())
    photographs = [file.read_bytes() for file in sorted(newcomer.glob("*.jpg"))]
    # There are ten of each; two more are others' mirror images.
    for photograph in photographs[:12 - len(photographs)]:
        mirrored = io.BytesIO()
        ImageOps.mirror(Image.open(io.BytesIO(photograph))).save(mirrored, "JPEG", quality=95)
        photographs.append(mirrored.getvalue())
    some = bench.folder / "people"
    some.mkdir()
    for folder in known:
        (some / folder.name).symlink_to(folder)
    with Databases() as databases:
        more = ("--database-url", databases.new_postgres("new_person"))
        with bench.ours("inception-resnet-v1", models, *more) as one, bench.ours("inception-resnet-v1", models, *more) as two:
            bench.facepipe(one, "enroll", "tree", some, "--train")
            name = urllib.parse.quote(newcomer.name)

            def add(photograph):
                body, kind = form([("image", photograph)])
                answer = requests.post(f"{one.url}/dataset/{name}/image", data=body, headers={"Content-Type": kind}, timeout=60)
                return answer.status_code

            def knows(server):
                body, kind = form([("image", photographs[0])])
                answer = requests.post(f"{server.url}/face-recognition/get-results", data=body, timeout=60,
                                       headers={"Content-Type": kind}).json()
                return any(prediction["label"] == newcomer.name
                           for face in answer["faces"] for prediction in face["all_predictions"])

            begun = time.monotonic()
            requests.post(f"{one.url}/dataset/{name}", timeout=60).raise_for_status()
            with concurrent.futures.ThreadPoolExecutor(4) as pool:
                added = list(pool.map(add, photographs))
            requests.post(f"{one.url}/model/optimized-train", params={"wait": "true"}, timeout=60).raise_for_status()
            while not (knows(one) and knows(two)):
                time.sleep(0.01)
            took = time.monotonic() - begun
            print(f"new_person: {added.count(201)} of {len(photographs)} photographs added")
            report_entries.append(report.entry("new_person", took, THESIS_NEW_PERSON_S, "s", THESIS_NEW_PERSON_S / took,
                                               max(one.peak_mb(), two.peak_mb())))


def overload(bench, server, picture, rate, add):
    """Four times as much as the server can do."""
    seconds = bench.options.overload
    early = {}

    def watch():
        early["mb"] = memory_mb(server.process.pid, "VmRSS")

    timer = threading.Timer(seconds / 4, watch)
    timer.start()
    row = bench.load(server, picture, "--rate", f"{4 * rate:.1f}", "--duration", str(seconds), "--concurrency", "1024")
    timer.join()
    late = memory_mb(server.process.pid, "VmRSS")
    p99 = row["latency"]["p99_ms"] / 1000
    print(f"overload: {json.dumps(row)}")
    add("serve_overload", p99, 2 * QUEUE_BUDGET_S, "s", 2 * QUEUE_BUDGET_S / p99, server)
    add("serve_overload_memory", late, early["mb"], "MB", early["mb"] / late, server)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("build", "models", "mirror", "report"):
        parser.add_argument(name, type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--overload", type=float, default=60, help="0: without")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        # Databases run as another user.
        pathlib.Path(folder).chmod(0o755)
        measure(Bench(options, folder))


def measure(bench):
    options, entries = bench.options, []
    photograph, crop = pictures(options.mirror, bench.folder)
    models = models_with_inception(options.models, bench.folder)

    def add(name, ours, peer, unit, ratio, server):
        entries.append(report.entry(name, ours, peer, unit, ratio, server.peak_mb()))

    with bench.peer() as peer:
        for embedder, ending in (("inception-resnet-v1", ""), ("mobilefacenet", "_mobilefacenet")):
            with bench.ours(embedder, models) as ours:
                bench.facepipe(ours, "enroll", "tree", options.mirror / "lfw10", "--train")
                for name, picture in (("photo", photograph), ("crop", crop)):
                    theirs, own = bench.compare(peer, ours, picture)
                    add(f"serve_{name}{ending}", best(own), best(theirs), "requests/s", best(own) / best(theirs), ours)
                    if ending == "" and name == "photo":
                        p99 = statistics.median(row["latency"]["p99_ms"] for row in own)
                        p50 = statistics.median(row["latency"]["p50_ms"] for row in theirs)
                        add("serve_latency", p99, p50, "ms, our p99 and the peer's p50", p50 / p99, ours)
                if ending == "":
                    add("serve_memory", ours.peak_mb(), peer.peak_mb(), "MB", peer.peak_mb() / ours.peak_mb(), ours)
                    start = ours.start_s
                    with HangUps(ours, photograph, best(own)) as others:
                        disturbed = bench.load(ours, photograph)
                    alone = bench.load(ours, photograph)
                    rates = [row["requests_per_second"] for row in (disturbed, alone)]
                    print(f"hang-ups: {others.sent} requests that nobody waited for")
                    add("serve_hangups", *rates, "requests/s", rates[0] / rates[1], ours)
                elif options.overload:
                    overload(bench, ours, crop, best(own), add)
            # A second start, with everything in the page cache as at a restart.
            if ending == "":
                with bench.ours(embedder, models) as ours:
                    start = min(start, ours.start_s)
                    add("serve_cold_start", start, peer.start_s, "s", peer.start_s / start, ours)
    new_person(bench, models, options.mirror / "lfw10", entries)
    report.write(options.report, entries)


if __name__ == "__main__":
    main()
