#!/usr/bin/env python3
"""Runs a pipeline script as a systemd service (Type=notify), and notifies systemd that it is alive.

Usage: watch.py SCRIPT [ARGUMENT...]

The script's output is its sign of life. It prints a line every few seconds while frames pass, while TensorRT builds an
engine, and whenever it reconnects to a camera; each line notifies systemd's watchdog. If nothing is printed for WatchdogSec, the
script hangs, and systemd restarts the service. Lines that only report that frames pass are not copied to the log.

SIGTERM and SIGINT are passed to the script, which then uploads what is queued. The exit status is the script's.
"""

import os
import re
import signal
import socket
import subprocess
import sys

# As the element progressreport prints it: "frames-1 (00:00:10): 10 seconds".
FRAMES = re.compile(r"^frames(-\d+)? \(\d+:\d\d:\d\d\): ")
ENGINE = re.compile(r"\(tensorrt-engine\) (.*)")
RETRY = re.compile(r": the stream .*; next attempt in .*")


def notify(*state):
    """Sends a state to systemd; without systemd, does nothing."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        try:
            channel.sendto("\n".join(state).encode(), address)
        except OSError as error:
            print(f"watch.py: systemd cannot be notified: {error}", file=sys.stderr, flush=True)


def status_of(line):
    """Returns the new text for `systemctl status` after this line, or None if it stays the same."""
    if FRAMES.match(line):
        return "Frames pass"
    found = ENGINE.search(line)
    if found:
        return found.group(1)
    if RETRY.search(line):
        return "Waiting for the camera"
    return None


def main(command):
    if not command:
        print(__doc__.strip(), file=sys.stderr)
        return 2
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        universal_newlines=True,
        errors="replace",
    )

    def pass_on(number, _frame):
        notify("STOPPING=1", "STATUS=Uploading what is queued")
        child.send_signal(number)

    signal.signal(signal.SIGTERM, pass_on)
    signal.signal(signal.SIGINT, pass_on)
    notify("READY=1", "STATUS=Starting")
    for line in child.stdout:
        status = status_of(line)
        notify("WATCHDOG=1", *([f"STATUS={status}"] if status else []))
        if not FRAMES.match(line):
            sys.stdout.write(line)
            sys.stdout.flush()
    code = child.wait()
    # For a process ended by a signal, the exit status that a shell would report.
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
