#!/usr/bin/python3
"""A network camera for tests: serves recordings over RTSP in real time, with Debian's gst-rtsp-server.

server.py PORT NAME=FILE...

Each FILE (MP4 or Matroska with H.264 or H.265) is played from its beginning to every client of rtsp://127.0.0.1:PORT/NAME,
with a sound track beside it, as cameras have one. PORT 0 takes a free one; the port is printed when the server is ready.

--clock-ahead SECONDS  lets the camera's clock (the NTP time in its RTCP reports) be ahead of this machine's, or behind it
--stall-after N        sends N frames, then no video any more, and stays connected
"""

import argparse
import sys
import threading

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402

# From 1900, where NTP counts from, to 1970 (RFC 5905, figure 4), seconds.
NTP_TO_UNIX = 2_208_988_800


def description(file, stall_after):
    """The pipeline of one stream, in which gst-rtsp-server looks for pay0 (video) and pay1 (sound)."""
    codec = "h265" if "h265" in file else "h264"
    demuxer = "matroskademux" if file.endswith(".mkv") else "qtdemux"
    stall = "! identity name=stall " if stall_after else ""
    return (
        f'( filesrc location="{file}" ! {demuxer} ! {codec}parse {stall}'
        f"! rtp{codec}pay name=pay0 pt=96 config-interval=-1 "
        "audiotestsrc wave=silence is-live=true ! audio/x-raw,rate=8000,channels=1 ! alawenc ! rtppcmapay name=pay1 pt=8 )"
    )


class CameraClock(Gst.SystemClock):
    """NTP time as the camera has it."""

    def __init__(self, ahead):
        super().__init__(clock_type=Gst.ClockType.REALTIME)
        offset = (NTP_TO_UNIX + ahead) * Gst.SECOND
        self.set_calibration(0, offset, 1, 1)


def tell_time_of_clock(media):
    """Lets the RTCP reports take their time from the pipeline's clock."""
    elements = media.get_element().get_parent().iterate_elements()
    result, element = elements.next()
    while result == Gst.IteratorResult.OK:
        if element.get_factory().get_name() == "rtpbin":
            Gst.util_set_object_arg(element, "ntp-time-source", "clock-time")
            return
        result, element = elements.next()
    sys.exit("gst-rtsp-server has no rtpbin")


def configure(_factory, media, arguments):
    if arguments.clock_ahead is not None:
        media.set_clock(CameraClock(arguments.clock_ahead))
        media.connect("prepared", tell_time_of_clock)
    if arguments.stall_after:
        stall = media.get_element().get_by_name("stall")
        passed = 0

        def count(_pad, _info):
            nonlocal passed
            passed += 1
            if passed > arguments.stall_after:
                # Dropped, the rest would run through at once, and end the stream.
                threading.Event().wait()
            return Gst.PadProbeReturn.OK

        stall.get_static_pad("sink").add_probe(Gst.PadProbeType.BUFFER, count)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("port")
    parser.add_argument("streams", nargs="+", metavar="NAME=FILE")
    parser.add_argument("--clock-ahead", type=int)
    parser.add_argument("--stall-after", type=int, default=0)
    arguments = parser.parse_args()

    Gst.init(None)
    server = GstRtspServer.RTSPServer(address="127.0.0.1", service=arguments.port)
    for stream in arguments.streams:
        name, file = stream.split("=", 1)
        factory = GstRtspServer.RTSPMediaFactory()
        factory.set_launch(description(file, arguments.stall_after))
        factory.connect("media-configure", configure, arguments)
        server.get_mount_points().add_factory(f"/{name}", factory)
    server.attach(None)
    print(server.get_bound_port(), flush=True)
    GLib.MainLoop().run()


if __name__ == "__main__":
    main()
