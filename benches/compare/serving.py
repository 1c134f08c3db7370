"""Times our backend against the usual Python stack (`peer_backend.py`), both up at once, load on one after the other.

serving.py BUILD_FOLDER MODELS MIRROR REPORT [--rounds N] [--seconds S] [--overload S]

`facepipe bench load` makes the load on both: 8 clients, each with one picture a request. Writes `serve_photo`, `serve_crop`,
`serve_photo_mobilefacenet` (requests per second), `serve_memory` (MB of a process at its most), `serve_latency` (our p99
against the peer's p50, ms), `serve_cold_start` (seconds from the start of the process to its first answer) and, with
--overload, `serve_overload` (p99 of what was accepted at four times what the server can do, against twice the queue's
budget, seconds) to the report.
"""

import argparse
import io
import json
import os
import pathlib
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

import report

CLIENTS = 8
QUEUE_BUDGET_S = 5.0


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def processes(root):
    """A process and all below it."""
    below = subprocess.run(["ps", "-o", "pid=", "--ppid", str(root)], capture_output=True, text=True).stdout.split()
    return [root] + [pid for child in below for pid in processes(int(child))]


def memory_mb(pid, field):
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    return 0.0


class Server:
    """A server's process, up until the end of the `with`."""

    def __init__(self, command, port, log, **options):
        self.url = f"http://127.0.0.1:{port}"
        self.begun = time.monotonic()
        self.process = subprocess.Popen(command, stdout=log, stderr=log, **options)

    def __enter__(self):
        while True:
            try:
                with urllib.request.urlopen(f"{self.url}/readyz", timeout=1):
                    self.start_s = time.monotonic() - self.begun
                    return self
            except (urllib.error.URLError, OSError):
                if self.process.poll() is not None or time.monotonic() - self.begun > 120:
                    sys.exit(f"{self.process.args[0]} does not serve; its log tells why")
                time.sleep(0.02)

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()

    def peak_mb(self):
        """Of its largest process."""
        return max(memory_mb(pid, "VmHWM") for pid in processes(self.process.pid))


class Bench:
    def __init__(self, options, folder):
        self.options, self.folder = options, pathlib.Path(folder)
        self.build = pathlib.Path(options.build)
        self.log = open(self.folder / "servers.log", "w")

    def peer(self):
        port = free_port()
        command = [sys.executable, "-m", "gunicorn", "--workers", "2", "--bind", f"127.0.0.1:{port}", "--timeout", "300",
                   "peer_backend:app"]
        return Server(command, port, self.log, cwd=os.path.dirname(os.path.abspath(__file__)))

    def ours(self, embedder, models):
        port = free_port()
        command = [self.build / "facepipe-backend", "--listen", f"127.0.0.1:{port}", "--embedder", embedder,
                   "--models-dir", models, "--data-dir", self.folder / embedder, "--log", "warn"]
        return Server(command, port, self.log)

    def facepipe(self, server, *arguments):
        command = [self.build / "facepipe", *arguments, "--server", server.url, "--json"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode not in (0, 3):
            sys.exit(f"{' '.join(map(str, command))}: {done.stderr}")
        return done.stdout

    def load(self, server, picture, *more):
        arguments = ["--concurrency", str(CLIENTS), "--duration", str(self.options.seconds)] if not more else more
        rows = json.loads(self.facepipe(server, "bench", "load", picture, *arguments))["rows"]
        if rows[0]["errors"]:
            sys.exit(f"{server.url}: {rows[0]['errors']}")
        return rows[0]

    def compare(self, peer, ours, picture):
        """The rows of both, load on the one and on the other by turns."""
        rows = [(self.load(peer, picture), self.load(ours, picture)) for _ in range(self.options.rounds)]
        return [row for row, _ in rows], [row for _, row in rows]


def best(rows):
    return max(row["requests_per_second"] for row in rows)


def pictures(mirror, folder):
    """A photograph of LFW as it is, and a crop as cameras send it: 150 pixels, some 4 KB."""
    from PIL import Image

    photograph = mirror / "lfw10/Tony_Blair/Tony_Blair_0001.jpg"
    picture = Image.open(photograph)
    left, top = (picture.width - 150) // 2, (picture.height - 150) // 2
    data = io.BytesIO()
    picture.crop((left, top, left + 150, top + 150)).save(data, "JPEG", quality=90, subsampling=2)
    crop = folder / "crop.jpg"
    crop.write_bytes(data.getvalue())
    return photograph, crop


def models_with_inception(models, folder):
    """The models folder, with weights of a formula where those of Inception-ResNet v1 are missing: as fast as the real."""
    names = [f"20180402-114759-vggface2.{ending}" for ending in ("safetensors", "pt")]
    if any((models / name).exists() for name in names):
        return models
    import torch
    from facenet_pytorch import InceptionResnetV1

    import peer_networks

    network = InceptionResnetV1(pretrained=None, classify=False).eval()
    with torch.no_grad():
        peer_networks.fill(network)
    whole = folder / "models"
    whole.mkdir()
    for file in models.iterdir():
        if file.is_file():
            (whole / file.name).symlink_to(file.resolve())
    write_safetensors(whole / names[0], {name: tensor.numpy() for name, tensor in network.state_dict().items()
                                         if not name.endswith("num_batches_tracked")})
    return whole


def write_safetensors(path, tensors):
    """Eight bytes of the header's length, the header in JSON, the numbers."""
    header, position = {}, 0
    for name, values in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(values.shape), "data_offsets": [position, position + values.nbytes]}
        position += values.nbytes
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for values in tensors.values():
            file.write(values.astype("<f4").tobytes())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("build", "models", "mirror", "report"):
        parser.add_argument(name, type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--overload", type=float, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
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
                if options.overload and ending:
                    rate = 4 * best(own)
                    row = bench.load(ours, crop, "--rate", f"{rate:.1f}", "--duration", str(options.overload))
                    p99 = row["latency"]["p99_ms"] / 1000
                    print(f"overload: {row}")
                    add("serve_overload", p99, 2 * QUEUE_BUDGET_S, "s", 2 * QUEUE_BUDGET_S / p99, ours)
            # A second start, with everything in the page cache as at a restart.
            if ending == "":
                with bench.ours(embedder, models) as ours:
                    start = min(start, ours.start_s)
                    add("serve_cold_start", start, peer.start_s, "s", peer.start_s / start, ours)
    report.write(options.report, entries)


if __name__ == "__main__":
    main()
