"""Executes a Dockerfile in chroots and runs the resulting image; prove.sh explains how and why, and gives it its own mounts."""

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "target" / "prove"
BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
DEBIAN = "http://deb.debian.org/debian"


def say(text):
    print(f"prove: {text}", flush=True)


def fail(text):
    sys.exit(f"prove: {text}")


def run(*command, **options):
    return subprocess.run([str(part) for part in command], check=True, **options)


def mount(*arguments):
    run("mount", *arguments)


class Stage:
    """A stage's file system, and the Dockerfile's settings for running it."""

    def __init__(self, name, root):
        self.name, self.root = name, root
        self.env, self.args = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, {}
        self.workdir, self.user, self.volumes = "/", "0:0", []
        self.entrypoint, self.command, self.health = [], [], []

    def inside(self, path):
        return self.root / str(path).lstrip("/")

    def variables(self):
        return self.args | self.env


def instructions(text):
    """Returns the Dockerfile's instructions, with continued lines joined and comments removed."""
    joined = ""
    for line in text.splitlines():
        if line.lstrip().startswith("#"):
            continue
        joined += line
        if joined.endswith("\\"):
            joined = joined[:-1] + " "
            continue
        if joined.strip():
            word, _, rest = joined.strip().partition(" ")
            yield word.upper(), rest.strip()
        joined = ""


def expand(text, variables):
    return re.sub(r"\$\{(\w+)\}", lambda match: variables.get(match[1], ""), text)


def options(text):
    """Splits `--name=value … rest`."""
    found = []
    while match := re.match(r"--([\w-]+)=(\S+)\s+", text):
        found.append((match[1], match[2]))
        text = text[match.end() :]
    return found, text


class Builder:
    def __init__(self, dockerfile, build_args, built):
        self.dockerfile, self.build_args, self.built = dockerfile, build_args, built
        self.global_args, self.stages, self.stage = {}, {}, None
        self.work = Path(tempfile.mkdtemp(dir=WORK, prefix="build-"))
        # In memory, because the build creates and deletes hundreds of thousands of files.
        mount("-t", "tmpfs", "-o", "mode=0755,size=6g", "tmpfs", self.work)
        listed = run("git", "-C", ROOT, "ls-files", "--cached", "--others", "--exclude-standard", capture_output=True, text=True)
        self.context = [line for line in listed.stdout.splitlines() if (ROOT / line).is_file()]

    def build(self):
        for word, rest in instructions(self.dockerfile.read_text()):
            if word not in ("RUN", "LABEL", "HEALTHCHECK"):
                rest = expand(rest, self.stage.variables() if self.stage and word != "FROM" else self.global_args)
            say(f"{word} {' '.join(rest.split())[:150]}")
            getattr(self, word.lower(), self.unknown(word))(rest)
        return self.stage

    def unknown(self, word):
        def refuse(_):
            fail(f"{self.dockerfile.name} has {word}, which this does not know")

        return refuse

    # FROM: debootstrap builds Debian's image; Rust's image is the same with this machine's toolchain.
    def from_(self, rest):
        image, _, name = rest.partition(" AS ")
        root = self.work / (name or "last")
        if image == "scratch":
            root.mkdir()
            self.stage = Stage(name, root)
        else:
            repository = image.split("@")[0].split(":")[0].split("/")[-1]
            if repository not in ("debian", "rust") or "bookworm" not in image:
                fail(f"FROM {image}: only Debian 12 and Rust on it are known")
            if not re.search(r"@sha256:[0-9a-f]{64}$", image):
                fail(f"FROM {image}: not pinned by a digest")
            run("cp", "--archive", debian(), root)
            self.stage = Stage(name, root)
            self.enter()
            if repository == "rust":
                self.rust()
        self.stages[name] = self.stage

    def enter(self):
        root = self.stage.root
        mount("--bind", root, root)
        mount("-t", "proc", "proc", root / "proc")
        mount("--rbind", "/dev", root / "dev")
        shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
        if Path("/etc/pip.conf").exists():
            shutil.copy("/etc/pip.conf", root / "etc/pip.conf")

    def rust(self):
        stage = self.stage
        self.shell("apt-get update -qq && apt-get install -y -qq --no-install-recommends ca-certificates gcc libc6-dev >/dev/null")
        # pip and other clients of registries must trust the same certificates as this machine.
        mount("--bind", "-o", "ro", BUNDLE, stage.inside(BUNDLE))
        home = subprocess.run(["rustc", "--print", "sysroot"], check=True, capture_output=True, text=True).stdout.strip()
        for folder, source in (("/usr/local/rust", home), ("/usr/local/cargo", None)):
            stage.inside(folder).mkdir(parents=True)
            if source:
                mount("--bind", "-o", "ro", source, stage.inside(folder))
        stage.env |= {"CARGO_HOME": "/usr/local/cargo"}
        stage.env["PATH"] = f"/usr/local/cargo/bin:/usr/local/rust/bin:{stage.env['PATH']}"
        if self.built:
            # Replaces only the compiler: `cargo [auditable] build` takes the existing programs, `cargo install` does nothing.
            mounted = stage.inside("/usr/local/built")
            mounted.mkdir()
            mount("--bind", "-o", "ro", self.built, mounted)
            shim = stage.inside("/usr/local/cargo/bin/cargo")
            shim.parent.mkdir()
            shim.write_text(
                '#!/bin/sh\nset -eu\necho "  (not compiled, taken as built: cargo $*)"\ncase " $* " in\n'
                '    " install "*) ;;\n    *" build --release --locked "*)\n        mkdir -p target/release\n'
                f'        [ "${{FACEPIPE_COMMIT-}}" = {shlex.quote(self.build_args["REVISION"])} ] ||\n'
                '            { echo "REVISION does not reach the compiler as FACEPIPE_COMMIT" >&2; exit 1; }\n'
                "        for file in facepipe facepipe-backend libgstfacepipe.so; do\n"
                '            cp "/usr/local/built/$file" target/release/\n        done ;;\n'
                '    *) echo "unexpected: cargo $*" >&2; exit 1 ;;\nesac\n'
            )
            shim.chmod(0o755)

    def arg(self, rest):
        name, _, default = rest.partition("=")
        if self.stage is None:
            self.global_args[name] = self.build_args.get(name, default)
        elif name in self.build_args:
            self.stage.args[name] = self.build_args[name]
        elif default:
            self.stage.args[name] = default

    def env(self, rest):
        for pair in shlex.split(rest):
            name, _, value = pair.partition("=")
            self.stage.env[name] = value

    def workdir(self, rest):
        self.stage.workdir = rest
        self.stage.inside(rest).mkdir(parents=True, exist_ok=True)

    def user(self, rest):
        self.stage.user = rest

    def volume(self, rest):
        self.stage.volumes += json.loads(rest)

    def entrypoint(self, rest):
        self.stage.entrypoint = json.loads(rest)

    def cmd(self, rest):
        self.stage.command = json.loads(rest)

    def healthcheck(self, rest):
        self.stage.health = json.loads(rest[rest.index("CMD") + 3 :])

    def label(self, rest):
        names = [pair.partition("=")[0] for pair in shlex.split(rest)]
        if not all(name.startswith("org.opencontainers.image.") for name in names):
            fail(f"LABEL: {names}")

    def expose(self, rest):
        pass

    def stopsignal(self, rest):
        if rest != "SIGTERM":
            fail(f"STOPSIGNAL {rest}")

    def copy(self, rest):
        flags, rest = options(rest)
        *sources, target = rest.split()
        other = dict(flags).get("from")
        for source in sources:
            if other:
                self.copy_tree(self.stages[other].inside(source), target)
                continue
            files = [name for name in self.context if name == source or name.startswith(f"{source}/") or source == "."]
            if not files:
                fail(f"COPY {source}: git knows no such file")
            for name in files:
                # COPY of a folder copies its contents.
                within = Path(name).relative_to(source) if name != source else Path(Path(name).name)
                to = self.stage.inside(self.absolute(target)) / within
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, to)

    def absolute(self, target):
        return target if target.startswith("/") else f"{self.stage.workdir}/{target}"

    def copy_tree(self, source, target):
        to = self.stage.inside(self.absolute(target))
        if source.is_dir():
            shutil.copytree(source, to, symlinks=True, dirs_exist_ok=True)
        else:
            to.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, to / source.name)

    def run(self, rest):
        flags, command = options(rest)
        for name, value in flags:
            parts = dict(part.partition("=")[::2] for part in value.split(","))
            if name != "mount" or parts.get("type") not in ("cache", "bind"):
                fail(f"RUN --{name}={value}")
            target = self.stage.inside(parts["target"])
            target.mkdir(parents=True, exist_ok=True)
            mirror = os.environ.get("FACEPIPE_MIRROR")
            if parts["type"] == "bind" and parts["from"] == "mirror" and mirror:
                mount("--bind", "-o", "ro", mirror, target)
        self.shell(command)

    def shell(self, command):
        environment = self.stage.variables() | {"DEBIAN_FRONTEND": "noninteractive"}
        arguments = ["env", "-i", *(f"{name}={value}" for name, value in environment.items())]
        arguments += ["/bin/sh", "-c", f"cd {shlex.quote(self.stage.workdir)} && {command}"]
        done = subprocess.run(["chroot", str(self.stage.root), *arguments])
        if done.returncode:
            fail(f"{self.stage.name}: the command ended with {done.returncode}")


setattr(Builder, "from", Builder.from_)


def debian():
    """Returns a minimal Debian 12, built once."""
    base = WORK / "bookworm"
    if not (base / "complete").exists():
        say("making a minimal Debian 12 by debootstrap (once)")
        shutil.rmtree(base, ignore_errors=True)
        with open(WORK / "debootstrap.log", "wb") as log:
            run("debootstrap", "--variant=minbase", "bookworm", base, DEBIAN, stdout=log)
        sources = [f"deb {DEBIAN} bookworm main", f"deb {DEBIAN} bookworm-updates main"]
        sources.append("deb http://deb.debian.org/debian-security bookworm-security main")
        (base / "etc/apt/sources.list").write_text("\n".join(sources) + "\n")
        (base / "complete").touch()
    return base


class Container:
    """Runs the image as in production: as its user, root read-only, /tmp and volumes in memory, no capability, no shell."""

    def __init__(self, stage, binds):
        self.stage = stage
        self.uid, self.gid = (int(number) for number in stage.user.split(":"))
        if self.uid == 0 or self.gid == 0:
            fail("the image runs as root")
        owner = f"uid={self.uid},gid={self.gid},mode=0700"
        for volume in stage.volumes:
            mount("-t", "tmpfs", "-o", owner, "tmpfs", stage.inside(volume))
        mount("-t", "tmpfs", "-o", "mode=1777", "tmpfs", stage.inside("/tmp"))
        for source, target in binds:
            stage.inside(target).mkdir(parents=True, exist_ok=True)
            mount("--bind", "-o", "ro", source, stage.inside(target))
        mount("-o", "remount,bind,ro", stage.root)
        said = self.run(["/bin/sh", "-c", "echo x >/etc/hostname || echo x >/opt/x"], capture_output=True, text=True)
        if said.returncode == 0 or "Read-only" not in said.stderr:
            fail(f"the root file system can be written: {said.stderr}")
        say("its root file system is read-only")

    def without_shell(self):
        empty = WORK / "empty"
        empty.mkdir(exist_ok=True)
        for folder in ("/usr/bin", "/usr/sbin"):
            mount("--bind", empty, self.stage.inside(folder))
        say("/usr/bin and /usr/sbin are empty: no shell")

    def command(self, arguments, environment=None):
        values = self.stage.env | {"HOME": "/nonexistent"} | (environment or {})
        enter = (
            "import os, sys; root, directory, uid, gid = sys.argv[1:5]; os.chroot(root); os.chdir(directory); "
            "os.setgroups([]); os.setresgid(*[int(gid)] * 3); os.setresuid(*[int(uid)] * 3); "
            "os.execvpe(sys.argv[5], sys.argv[5:], os.environ)"
        )
        command = ["setpriv", "--no-new-privs", sys.executable, "-c", enter]
        command += [str(self.stage.root), self.stage.workdir, str(self.uid), str(self.gid), *arguments]
        return command, values

    def run(self, arguments, environment=None, **options):
        command, values = self.command(arguments, environment)
        return subprocess.run(command, env=values, **options)

    def start(self, arguments, environment=None):
        command, values = self.command(arguments, environment)
        return subprocess.Popen(command, env=values)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def data(name):
    for folder in (ROOT / "models" / "assets" / name, Path(os.environ.get("FACEPIPE_MIRROR", "/nonexistent")) / name):
        if folder.is_dir():
            return folder
    fail(f"no {name}: run `facepipe models fetch`, or set FACEPIPE_MIRROR to a folder that has it")


def call(url, *arguments):
    done = subprocess.run(["curl", "-sS", "--fail-with-body", *arguments, url], capture_output=True, text=True)
    if done.returncode:
        fail(f"{url}: {done.stdout} {done.stderr}")
    return done.stdout


def check_version(container, revision, *command):
    """Checks that a program reports the image's commit; existing programs (--built) report their own."""
    done = container.run(list(command), capture_output=True, text=True)
    if done.returncode or (revision and revision not in done.stdout):
        fail(f"{' '.join(command)} does not report {revision or 'a version'}: {done.stdout}{done.stderr}")
    said = re.search(r"Version +\S+", done.stdout) or re.search(r".*", done.stdout)
    say(f"{' '.join(command)}: {said[0]}")


def prove_backend(stage, revision):
    faces = data("lfw10")
    container = Container(stage, [(ROOT / "models", "/models")])
    container.without_shell()
    check_version(container, revision, *stage.entrypoint, "--version")
    port, metrics = free_port(), free_port()
    environment = {"FACEPIPE_LISTEN": f"127.0.0.1:{port}", "FACEPIPE_METRICS_LISTEN": f"127.0.0.1:{metrics}"}
    server = container.start(stage.entrypoint + stage.command, environment)
    try:
        url = f"http://127.0.0.1:{port}"
        begun = time.monotonic()
        while subprocess.run(["curl", "-sf", "-o", "/dev/null", f"{url}/readyz"]).returncode:
            if server.poll() is not None or time.monotonic() - begun > 60:
                fail("the server does not become ready")
            time.sleep(0.1)
        status = Path(f"/proc/{server.pid}/status").read_text()
        uids = re.search(r"^Uid:\s+(.*)$", status, re.M)[1].split()
        capabilities = re.search(r"^CapEff:\s+(\w+)$", status, re.M)[1]
        if set(uids) != {str(container.uid)} or int(capabilities, 16):
            fail(f"the server runs with uids {uids} and capabilities {capabilities}")
        say(f"it runs as uid {container.uid} without capabilities")
        for person in ("Tony_Blair", "Hugo_Chavez"):
            call(f"{url}/dataset/{person}", "-X", "POST")
            for number in (1, 2):
                call(f"{url}/dataset/{person}/image", "-F", f"image=@{faces}/{person}/{person}_000{number}.jpg")
        call(f"{url}/model/optimized-train?wait=true", "-X", "POST")
        answer = json.loads(
            call(f"{url}/face-recognition/get-results", "-F", f"image=@{faces}/Tony_Blair/Tony_Blair_0005.jpg")
        )
        face = answer["faces"][0]
        if (face["decision"], face["top_prediction"]["label"]) != ("known", "Tony_Blair"):
            fail(f"it was not recognised who was enrolled: {answer}")
        say("it enrolled two people, was trained, and recognised one of them on another photograph")
        health = container.run(stage.health, environment)
        if health.returncode:
            fail(f"the health check {stage.health} ended with {health.returncode}")
        say("its health check is content")
        server.send_signal(signal.SIGTERM)
        if server.wait(timeout=60) != 0:
            fail(f"SIGTERM ended it with {server.returncode}")
        say("SIGTERM ended it in an orderly way")
        if container.run(stage.health, environment, capture_output=True).returncode == 0:
            fail("the health check is content with a server that is gone")
    finally:
        server.kill()
        server.wait()


def prove_edge(stage, revision):
    container = Container(stage, [(data("scenes"), "/mnt"), (data("videos"), "/srv")])
    check_version(container, revision, "facepipe", "--version")
    check_version(container, revision, "gst-inspect-1.0", "facepipe-facedetect")
    if container.run(stage.command).returncode:
        fail(f"{stage.command} ended with an error")
    pipeline = "filesrc location=/mnt/multiface.jpg ! jpegdec ! facedetect ! facecrop ! multifilesink location=/spool/%d.jpg"
    if container.run(["gst-launch-1.0", "-q", *pipeline.split()]).returncode:
        fail("the pipeline ended with an error")
    faces = list(stage.inside("/spool").glob("*.jpg"))
    if not faces or any(face.read_bytes()[:2] != b"\xff\xd8" for face in faces):
        fail("the pipeline found no face")
    say(f"it found {len(faces)} faces on a picture of a group")
    # One of the scripts, which need a few programs in addition to GStreamer.
    if container.run(["extract.sh", "/srv/street-1080p.mp4", "/spool/street"]).returncode:
        fail("extract.sh ended with an error")
    faces = list(stage.inside("/spool/street").rglob("*.jpg"))
    if not faces:
        fail("extract.sh found no face")
    say(f"extract.sh found {len(faces)} faces on a video")


def main():
    parser = argparse.ArgumentParser(prog="prove.sh", add_help=False)
    parser.add_argument("image", choices=("backend", "edge"))
    parser.add_argument("--built", type=lambda path: Path(path).resolve(strict=True))
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    arguments = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    build_args = dict(pair.partition("=")[::2] for pair in arguments.build_arg)
    if "SNAPSHOT" not in build_args:
        reached = subprocess.run(["curl", "-sf", "-m", "10", "-o", "/dev/null", "http://snapshot.debian.org/"])
        if reached.returncode:
            say("snapshot.debian.org cannot be reached: SNAPSHOT= (Debian's packages of today)")
            build_args["SNAPSHOT"] = ""
    if "REVISION" not in build_args:
        revision = run("git", "-C", ROOT, "rev-parse", "HEAD", capture_output=True, text=True)
        build_args["REVISION"] = revision.stdout.strip()
    dockerfile = Path(__file__).with_name(f"{arguments.image}.Dockerfile")
    builder = Builder(dockerfile, build_args, arguments.built)
    try:
        stage = builder.build()
        revision = None if arguments.built else build_args["REVISION"]
        {"backend": prove_backend, "edge": prove_edge}[arguments.image](stage, revision)
        say(f"{dockerfile.name}: done")
    finally:
        # Its mounts disappear with it: they exist only in this namespace.
        run("umount", "--recursive", "--lazy", builder.work)
        builder.work.rmdir()


main()
