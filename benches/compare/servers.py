"""Servers for the comparisons: ours, the Python peer's, databases and a load balancer, and the pictures they are asked about."""

import io
import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

CLIENTS = 8
ROOT = pathlib.Path(__file__).resolve().parents[2]


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
    """Starts servers, of programs in `options.build`, and puts load on them, for `options.seconds` at a time."""

    def __init__(self, options, folder):
        self.options, self.folder = options, pathlib.Path(folder)
        self.build = pathlib.Path(options.build)
        self.log = open(self.folder / "servers.log", "w")

    def peer(self, workers=2):
        port = free_port()
        command = [sys.executable, "-m", "gunicorn", "--workers", str(workers), "--bind", f"127.0.0.1:{port}", "--timeout", "300",
                   "peer_backend:app"]
        return Server(command, port, self.log, cwd=os.path.dirname(os.path.abspath(__file__)))

    def ours(self, embedder, models, *more, data=None):
        """Ours, with its data in the folder `data`, otherwise one of its embedder's."""
        port = free_port()
        command = [self.build / "facepipe-backend", "--listen", f"127.0.0.1:{port}", "--embedder", embedder,
                   "--models-dir", models, "--data-dir", data or self.folder / embedder, "--log", "warn", "--metrics-listen", "off",
                   *more]
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
    name = "20180402-114759-vggface2.safetensors"
    if (models / name).exists():
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
    write_safetensors(whole / name, {tensor: values.numpy() for tensor, values in network.state_dict().items()
                                     if not tensor.endswith("num_batches_tracked")})
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




class Databases:
    """PostgreSQL and MariaDB, empty, up until the end of the `with`; `postgres` and `mysql` are their addresses."""

    def __enter__(self):
        told = subprocess.run([ROOT / "scripts/databases.sh", "start"], capture_output=True, text=True, check=True).stdout
        self.told = dict(re.findall(r"export (\w+)=(\S+)", told))
        self.postgres = self.told["FACEPIPE_TEST_POSTGRES"]
        self.mysql = self.told["FACEPIPE_TEST_MYSQL"]
        return self

    def __exit__(self, *_):
        subprocess.run([ROOT / "scripts/databases.sh", "stop"], env={**os.environ, **self.told}, check=True)

    def new_postgres(self, name):
        """The address of a new database."""
        subprocess.run(["psql", "--quiet", f"{self.postgres}/postgres", "-c", f"CREATE DATABASE {name}"], check=True)
        return f"{self.postgres}/{name}"

    def new_mysql(self, name):
        """The address of a new database."""
        port = self.mysql.rsplit(":", 1)[1]
        subprocess.run(["mariadb", "--no-defaults", "-h", "127.0.0.1", "-P", port, "-u", "facepipe", "-e",
                        f"CREATE DATABASE {name}"], check=True)
        return f"{self.mysql}/{name}"


class Balancer:
    """nginx in front of servers, up until the end of the `with`."""

    def __init__(self, servers, folder):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        upstream = "".join(f"server {server.url.removeprefix('http://')}; " for server in servers)
        self.configuration = folder / f"nginx-{self.port}.conf"
        self.configuration.write_text(f"""
daemon off; pid {folder}/nginx-{self.port}.pid; error_log stderr error; worker_processes 1;
events {{ worker_connections 1024; }}
http {{
    access_log off; client_max_body_size 64m; client_body_temp_path {folder}; proxy_temp_path {folder};
    fastcgi_temp_path {folder}; uwsgi_temp_path {folder}; scgi_temp_path {folder};
    upstream replicas {{ least_conn; keepalive 64; {upstream} }}
    server {{
        listen 127.0.0.1:{self.port};
        location / {{ proxy_pass http://replicas; proxy_http_version 1.1; proxy_set_header Connection ""; }}
    }}
}}
""")

    def __enter__(self):
        program = next(p for p in ("/usr/sbin/nginx", "/usr/bin/nginx") if os.path.exists(p))
        self.process = subprocess.Popen([program, "-e", "stderr", "-c", self.configuration], stderr=subprocess.DEVNULL)
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return self
            except OSError:
                if self.process.poll() is not None:
                    sys.exit("nginx does not start")
                time.sleep(0.02)

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()
