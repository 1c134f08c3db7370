"""How the server scales with the number of enrolled people, and what must hold at 10,000 and 100,000.

gallery.py BUILD_FOLDER MODELS MIRROR REPORT --store PROGRAM [--searcher PROGRAM] [--people N...] [--rounds N] [--seconds S]
           [--plots FOLDER]

For each number of people a server with MobileFaceNet: eight of lfw10 with their photographs, the others with one synthetic
embedding each, stored as the server stores them (STORE, the program of `cargo bench --bench store`). Each server runs side by
side with one that has ten people, and both get the same load by turns, so that a busy machine slows both.

Draws requests per second over the number of people into FOLDER/scaling-gallery.svg, and with SEARCHER (`cargo bench -p
facepipe-identify --bench training`) also how many searches per second one thread does, against the same search in NumPy.
Writes to the report, for 10,000 and 100,000 people:

* `gallery_10000`, …: get-results of a crop per second, against ten people in the same rounds (median of the rounds' ratios);
* `gallery_10000_new_person`, …: seconds to enrol one more person with three photographs and to train, until get-results names
  the person, against the limit.

Fails where a ratio or a size is beyond its limit.
"""

import argparse
import json
import pathlib
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid

import numpy as np

import report
from plots import draw
from servers import Bench, pictures

EMBEDDER, DIMENSIONS = "mobilefacenet", 128
PEOPLE = (10, 100, 1_000, 10_000, 100_000)
# Of people: minimum ratio of the throughput to that with ten, maximum of seconds until a new person is named.
LIMITS = {10_000: (0.95, 3.0), 100_000: (0.8, 10.0)}
MAX_FACE_BYTES = 2048
MAX_ROW_BYTES = 1024
NEWCOMERS = 2
NEWCOMERS_PHOTOGRAPHS = 3


def call(url, fields=(), method="POST"):
    """Calls the API with a form of (name, content), where there is one. Returns the body's bytes."""
    boundary = uuid.uuid4().hex
    parts = [b'--%b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n' % (boundary.encode(), name.encode(), content)
             for name, content in fields]
    headers, data = {}, b""
    if fields:
        headers, data = {"Content-Type": f"multipart/form-data; boundary={boundary}"}, b"".join(parts) + f"--{boundary}--\r\n".encode()
    request = urllib.request.Request(url, data=data, headers=headers, method=method)
    with urllib.request.urlopen(request, timeout=3600) as answer:
        return answer.read()


class Gallery:
    """A server with so many people, up until the end of the `with`."""

    def __init__(self, bench, people, enrolled, copy=""):
        self.bench, self.people, self.enrolled = bench, people, enrolled
        self.folder = bench.folder / f"gallery-{people}{copy}"
        self.folder.mkdir()
        self.database = self.folder / "facepipe.db"
        synthetic = people - len(list(enrolled.iterdir()))
        begun = time.monotonic()
        subprocess.run([bench.options.store, f"sqlite://{self.database}", "--people", str(synthetic), EMBEDDER, str(DIMENSIONS)],
                       check=True)
        self.filled = time.monotonic() - begun
        self.server = bench.ours(EMBEDDER, bench.options.models, data=self.folder)

    def __enter__(self):
        self.server.__enter__()
        try:
            self.url = self.server.url
            begun = time.monotonic()
            self.bench.facepipe(self.server, "enroll", "tree", self.enrolled, "--train")
            print(f"{self.people} people: stored in {self.filled:.1f} s, those with photographs and the first training in "
                  f"{time.monotonic() - begun:.1f} s", flush=True)
        except BaseException:
            self.server.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.server.__exit__()

    def answer_bytes(self, picture):
        """Bytes of get-results' answer about a picture of one face."""
        body = call(f"{self.url}/face-recognition/get-results", [("image", picture.read_bytes())])
        assert len(json.loads(body)["faces"]) == 1
        return len(body)

    def row_bytes(self, picture):
        """Bytes of the idempotency record that store-results writes."""
        fields = [("image", picture.read_bytes()), ("key", str(uuid.uuid4()).encode()), ("camera_id", b"gate-1"), ("location", b"Lobby")]
        call(f"{self.url}/face-recognition/store-results", fields)
        with sqlite3.connect(f"file:{self.database}?mode=ro", uri=True) as database:
            # The two numbers as SQLite stores them at most.
            query = 'SELECT MAX(LENGTH(CAST("call" || upload_key || faces AS BLOB)) + 16) FROM answers'
            return database.execute(query).fetchone()[0]

    def new_person(self, photographs):
        """Seconds from the first call about a new person until get-results names the person, and those of the training."""
        begun = time.monotonic()
        name = photographs[0].parent.name
        call(f"{self.url}/dataset/{name}")
        for photograph in photographs[:NEWCOMERS_PHOTOGRAPHS]:
            call(f"{self.url}/dataset/{name}/image", [("image", photograph.read_bytes())])
        training = time.monotonic()
        call(f"{self.url}/model/optimized-train?wait=true")
        trained = time.monotonic() - training
        while True:
            body = call(f"{self.url}/face-recognition/get-results", [("image", photographs[-1].read_bytes())])
            face = json.loads(body)["faces"][0]
            if face["decision"] == "known" and face["top_prediction"]["label"] == name:
                return time.monotonic() - begun, trained
            assert time.monotonic() - begun < 600, f"{name} is not named: {face}"


def photographs_of(folder):
    return sorted(file for file in folder.iterdir() if file.suffix == ".jpg")


def split(bench):
    """Folders of the people who are enrolled from the start, and photographs of those who come later: pictures of one face, as
    a server with nobody finds them."""
    everybody = bench.folder / "everybody"
    everybody.mkdir()
    newcomers = []
    with bench.ours(EMBEDDER, bench.options.models, data=bench.folder / "nobody") as server:
        for folder in sorted((bench.options.mirror / "lfw10").iterdir()):
            if not folder.is_dir():
                continue
            def faces(photograph):
                body = call(f"{server.url}/face-recognition/get-results", [("image", photograph.read_bytes())])
                return len(json.loads(body)["faces"])
            clear = [photograph for photograph in photographs_of(folder) if faces(photograph) == 1]
            if len(newcomers) < NEWCOMERS:
                newcomers.append(clear[:NEWCOMERS_PHOTOGRAPHS + 1])
            else:
                (everybody / folder.name).symlink_to(folder.resolve())
    return everybody, newcomers


def numpy_searches(count, seconds):
    """The same search by NumPy: the cosine to each mean, the nearest five, their probabilities: exp(slope · cosine) of the sum over
    everybody. The slope is that of an embedder whose photographs, one a person, determine none."""
    random = np.random.default_rng(7)
    means = random.standard_normal((count, 512), dtype=np.float32)
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    labels = [f"{person:06}" for person in range(count)]
    slope = np.float32(2 * 512 ** 0.5)
    begun, searches = time.monotonic(), 0
    while time.monotonic() - begun < seconds:
        embedding = means[searches % count]
        cosines = means @ embedding
        exponentials = np.exp(slope * (cosines - cosines.max()))
        best = np.argpartition(-cosines, 4)[:5]
        best = best[np.argsort(-cosines[best], kind="stable")]
        probabilities = exponentials[best] / exponentials.sum()
        answer = [(labels[person], probability) for person, probability in zip(best, probabilities)]
        assert answer[0][0] == labels[searches % count] and cosines[best[0]] > 0.9
        searches += 1
    return searches / (time.monotonic() - begun)


def searches(options):
    ours, theirs = {}, {}
    for count in options.people:
        command = [options.searcher, str(count), "1", "--search", str(options.seconds)]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        ours[count] = json.loads(told)["searches_per_second"]
        theirs[count] = numpy_searches(count, options.seconds)
    return {"search alone, one thread": ours, "search alone, NumPy": theirs}


def measure(bench):
    options, entries, beyond = bench.options, [], []
    _, crop = pictures(options.mirror, bench.folder)
    enrolled, newcomers = split(bench)
    rates = {}

    def check(people, what, value, limit, wrong):
        if wrong:
            beyond.append(f"{people} people: {what} is {value:.2f}, the limit is {limit}")

    with Gallery(bench, options.people[0], enrolled) as base:
        for people in options.people:
            with Gallery(bench, people, enrolled, "-other") as gallery:
                # The first requests load what the next ones find.
                for server in (base, gallery):
                    bench.load(server, crop)
                pairs = [tuple(bench.load(server, crop)["requests_per_second"] for server in order)[::step]
                         for order, step in [((base, gallery), 1), ((gallery, base), -1)] * (options.rounds // 2)]
                ratio = statistics.median(own / ten for ten, own in pairs)
                rates[people] = statistics.median(own for _, own in pairs)
                ten = statistics.median(ten for ten, _ in pairs)
                face_bytes, row_bytes = gallery.answer_bytes(crop), gallery.row_bytes(crop)
                took = [gallery.new_person(photographs) for photographs in newcomers]
                slowest = max(whole for whole, _ in took)
                peak = gallery.server.peak_mb()
            print(f"{people} people: {rates[people]:.1f} requests/s, {ten:.1f} with {options.people[0]}, "
                  f"ratios {', '.join(f'{own / ten:.3f}' for ten, own in pairs)}, answer {face_bytes} bytes, row {row_bytes} bytes, "
                  f"new person {', '.join(f'{whole:.2f} s ({train:.2f} s training)' for whole, train in took)}, peak {peak:.0f} MB",
                  flush=True)
            check(people, "an answer about one face, bytes,", face_bytes, MAX_FACE_BYTES, face_bytes > MAX_FACE_BYTES)
            check(people, "a row of answers, bytes,", row_bytes, MAX_ROW_BYTES, row_bytes > MAX_ROW_BYTES)
            if people in LIMITS:
                least, longest = LIMITS[people]
                check(people, f"the throughput against that with {options.people[0]} people", ratio, least, ratio < least)
                check(people, "the time of a new person, s,", slowest, longest, slowest > longest)
                entries.append(report.entry(f"gallery_{people}", rates[people], ten, "requests/s", ratio, peak))
                entries.append(report.entry(f"gallery_{people}_new_person", slowest, longest, "s", longest / slowest, peak))
    lines = {"get-results of a crop, 8 clients, two cores": rates} | (searches(options) if options.searcher else {})
    draw(options, "gallery", "MobileFaceNet: the server and the search alone" if options.searcher else "get-results, MobileFaceNet",
         "people in the gallery", "per second", lines, logarithmic=True)
    report.write(options.report, entries)
    if beyond:
        sys.exit("\n".join(["Beyond the limits:"] + beyond))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("build", "models", "mirror", "report"):
        parser.add_argument(name, type=pathlib.Path)
    parser.add_argument("--store", type=pathlib.Path, required=True)
    parser.add_argument("--searcher", type=pathlib.Path)
    parser.add_argument("--people", type=int, nargs="+", default=PEOPLE)
    parser.add_argument("--rounds", type=int, default=6, help="even: half begin with the one server, half with the other")
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--plots", type=pathlib.Path, default=pathlib.Path("target/bench"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(Bench(options, folder))


if __name__ == "__main__":
    main()
