"""Times the elements beside the camera against the usual Python stack (`peer_edge.py`) and against what decoding costs anyway.

edge.py PLUGIN_FOLDER MODELS MIRROR REPORT [--rounds N]

Everything runs on one core. Writes `edge_fps` (frames of a 1080p recording per second, against the peer with the same
model), `edge_cpu` (CPU ms per frame, against decoding alone + inference alone), `edge_still` (the same of a scene in which
nothing moves, against decoding alone), `edge_cameras` (frames per second of four cameras at a time, against the 24 of 6 a
second each) and `edge_camera_memory` (MB of one more camera, against 60) to the report.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import report

MODEL = "version-RFB-640.onnx"
CAMERAS, CAMERA_FPS, CAMERA_MB = 4, 6, 60
DETECT = "facepipe-facedetect model=rfb-640 threads=1"
CROP = "facepipe-facecrop policy=every"
TRACK = "facepipe-facetrack ! facepipe-facecrop"
DECODE = "filesrc location={} ! h264parse ! avdec_h264 max-threads=1"


class Run:
    """A process on one core: how long it took, its CPU seconds, and its memory at its most (MB)."""

    def __init__(self, command, **options):
        begun = time.perf_counter()
        process = subprocess.Popen(["taskset", "--cpu-list", "0", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   text=True, **options)
        self.said, errors = process.stdout.read(), process.stderr.read()
        _, status, used = os.wait4(process.pid, 0)
        self.seconds = time.perf_counter() - begun
        if status != 0:
            sys.exit(f"{' '.join(map(str, command))}: {errors}")
        self.cpu, self.peak_mb = used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


class Bench:
    def __init__(self, options):
        self.options = options
        self.model = options.models / MODEL
        self.environment = dict(os.environ, GST_PLUGIN_PATH=str(options.plugins), FACEPIPE_MODELS=str(options.models),
                                GST_REGISTRY=str(options.plugins / "bench-registry.bin"))

    def launch(self, pipeline):
        return Run(["gst-launch-1.0", "--quiet", *pipeline.split()], env=self.environment)

    def peer(self, *arguments):
        peer = pathlib.Path(__file__).with_name("peer_edge.py")
        return Run([sys.executable, peer, *map(str, arguments)]).said.split()

    def rounds(self, *works):
        """Each of the works by turns; their results in the same order."""
        results = [[work() for work in works] for _ in range(self.options.rounds)]
        return list(zip(*results))


def stream(bench, video, path, times):
    """The H.264 of a recording, so many times one after the other: what starts cost is little of it."""
    bench.launch(f"filesrc location={video} ! qtdemux ! h264parse ! video/x-h264,stream-format=byte-stream,alignment=au ! "
                 f"filesink location={path}")
    path.write_bytes(path.read_bytes() * times)
    return path


def still_scene(bench, video, path, frames):
    """A video of a recording's first picture, as cameras that see nothing move send it."""
    bench.launch(f"{DECODE.format(video)} ! imagefreeze num-buffers={frames} ! video/x-raw,framerate=25/1 ! x264enc tune=zerolatency ! h264parse ! "
                 f"video/x-h264,stream-format=byte-stream,alignment=au ! filesink location={path}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("plugins", "models", "mirror", "report"):
        parser.add_argument(name, type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=3)
    with tempfile.TemporaryDirectory() as folder:
        measure(Bench(parser.parse_args()), pathlib.Path(folder))


def measure(bench, folder):
    options, entries = bench.options, []
    # The first run also writes the registry.
    bench.launch("videotestsrc num-buffers=1 ! fakesink")
    video = stream(bench, options.mirror / "videos/street-1080p.mp4", folder / "street.h264", 5)

    decode = DECODE.format(video)
    ours = f"{decode} ! {DETECT} ! {CROP} ! fakesink"
    crops = folder / "crops"
    crops.mkdir()
    runs, decoding, peers, inference = bench.rounds(
        lambda: bench.launch(ours),
        lambda: bench.launch(f"{decode} ! fakesink"),
        lambda: bench.peer("detect", video, bench.model, crops),
        lambda: bench.peer("infer", bench.model, 100),
    )
    frames = int(peers[0][0])
    fps, peer_fps = frames / min(run.seconds for run in runs), max(frames / float(seconds) for _, seconds in peers)
    peak = max(run.peak_mb for run in runs)
    entries.append(report.entry("edge_fps", fps, peer_fps, "frames/s", fps / peer_fps, peak))

    def per_frame(those, number):
        return 1000 * min(run.cpu for run in those) / number

    cpu = per_frame(runs, frames)
    floor = per_frame(decoding, frames) + min(float(one) for one, in inference)
    entries.append(report.entry("edge_cpu", cpu, floor, "CPU ms/frame", floor / cpu, peak))

    still, number, times = folder / "still.h264", 1500, 4
    still_scene(bench, video, still, number)
    # As long as what the start costs is little of it.
    still.write_bytes(still.read_bytes() * times)
    number *= times
    decode = DECODE.format(still)
    runs, decoding = bench.rounds(
        lambda: bench.launch(f"{decode} ! {DETECT} motion-threshold=3 ! {TRACK} ! fakesink"),
        lambda: bench.launch(f"{decode} ! fakesink"),
    )
    cpu, floor = per_frame(runs, number), per_frame(decoding, number)
    entries.append(report.entry("edge_still", cpu, floor, "CPU ms/frame", floor / cpu, max(run.peak_mb for run in runs)))

    crowd = stream(bench, options.mirror / "videos/crowd-medium-1080p6.mp4", folder / "crowd.h264", 1)
    camera = f"{DECODE.format(crowd)} ! {DETECT} ! {TRACK} ! fakesink"
    one, several = bench.rounds(lambda: bench.launch(camera), lambda: bench.launch("  ".join([camera] * CAMERAS)))
    # 30 s of video each, as fast as they go.
    fps = CAMERAS * CAMERA_FPS * 30 / min(run.seconds for run in several)
    wanted = CAMERAS * CAMERA_FPS
    peak = max(run.peak_mb for run in several)
    entries.append(report.entry("edge_cameras", fps, wanted, "frames/s", fps / wanted, peak))
    more = (statistics.median(run.peak_mb for run in several) - statistics.median(run.peak_mb for run in one)) / (CAMERAS - 1)
    entries.append(report.entry("edge_camera_memory", more, CAMERA_MB, "MB", CAMERA_MB / more, peak))
    report.write(options.report, entries)


if __name__ == "__main__":
    main()
