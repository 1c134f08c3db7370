#!/usr/bin/env python3
"""progress.py cargo|apt COMMAND...

Runs a cargo or apt-get command that takes minutes and reports its progress: continuously on a terminal, elsewhere (a log,
CI) one line per minute, as a sign of life. The command's errors pass through, and its exit status becomes this program's.
FACEPIPE_PROGRESS_SECONDS is the time between two lines, 60 by default.
"""

import os
import re
import subprocess
import sys
import threading
import time

BAR = re.compile(r"^\s*Building \[[^\]]*\]\s*(\d+)/(\d+)(?:: (.*))?$")
DOWNLOADS = re.compile(r"^\s*Downloading (?:\[[^\]]*\]\s*)?(.*)$")
# Cargo's lines for each crate: the progress lines replace them.
ROUTINE = re.compile(r"^\s*(Compiling|Checking|Downloaded|Fresh|Locking|Updating) ")
COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
STATUS = re.compile(r"^(dlstatus|pmstatus):[^:]*:([0-9.]+):(.*)$")


class Cargo:
    """Progress of cargo, read from its progress bar."""

    def __init__(self):
        self.now = None

    def read(self, line):
        """Returns whether to print the line unchanged."""
        if bar := BAR.match(line):
            done, all_of_them, at_work = bar.groups()
            self.now = f"{done} of {all_of_them} units compiled"
            if at_work:
                self.now += f", now {at_work}"
            return False
        if downloads := DOWNLOADS.match(line):
            self.now = f"downloading {downloads[1]}"
            return False
        return bool(line.strip()) and not ROUTINE.match(line)


class Apt:
    """Progress of apt-get, read from its status lines (APT::Status-Fd=1)."""

    def __init__(self):
        self.now = None
        self.said = []

    def read(self, line):
        if status := STATUS.match(line):
            step, percent, what = status.groups()
            doing = "downloading" if step == "dlstatus" else "installing"
            self.now = f"{doing} Debian packages, {float(percent):.0f} %: {what.strip()}"
        else:
            # Printed only if it fails.
            self.said.append(line)
        return False


def run(progress, command, every, terminal):
    environment = os.environ | {"CARGO_TERM_PROGRESS_WHEN": "always", "CARGO_TERM_PROGRESS_WIDTH": "100"}
    begun = time.monotonic()
    reported = None
    lock = threading.Lock()
    ended = threading.Event()

    def report():
        nonlocal reported
        if progress.now is None or (every == 0 and progress.now == reported):
            return
        reported = progress.now
        minutes, seconds = divmod(int(time.monotonic() - begun), 60)
        line = f"  {minutes}:{seconds:02} {progress.now}"
        print(f"\r\x1b[K{line[:100]}" if terminal else line, end="" if terminal else "\n", flush=True)

    def clock():
        while not ended.wait(1 if terminal else every):
            with lock:
                report()

    # sudo and apt-get ask nothing here, so their output needs no terminal.
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
    ) as child:
        if every:
            threading.Thread(target=clock, daemon=True).start()
        rest = b""
        while piece := os.read(child.stdout.fileno(), 65536):
            # A bar ends with a carriage return, a message with a line feed.
            *lines, rest = re.split(rb"[\r\n]", rest + piece)
            for line in lines:
                take(progress, line, lock, terminal)
                if not every:
                    report()
        take(progress, rest, lock, terminal)
        ended.set()
    if terminal:
        print("\r\x1b[K", end="", flush=True)
    if child.returncode and getattr(progress, "said", None):
        print("\n".join(progress.said[-40:]), file=sys.stderr)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def take(progress, line, lock, terminal):
    line = COLOURS.sub("", line.decode(errors="replace")).rstrip()
    with lock:
        if progress.read(line):
            if terminal:
                print("\r\x1b[K", end="")
            print(line, flush=True)


def main():
    kind, *command = sys.argv[1:]
    terminal = sys.stdout.isatty() and os.environ.get("TERM") not in (None, "dumb")
    if kind == "cargo" and terminal and sys.stderr.isatty():
        # Cargo's own bar is better.
        os.execvp(command[0], command)
    progress = {"cargo": Cargo, "apt": Apt}[kind]()
    sys.exit(run(progress, command, float(os.environ.get("FACEPIPE_PROGRESS_SECONDS", "60")), terminal))


if __name__ == "__main__":
    main()
