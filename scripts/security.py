#!/usr/bin/env python3
"""security.py

Checks that every test that SECURITY.md names exists: a file in backquotes, a colon, and the names of its functions, up to the next file.
Needs no build.
"""

import re
import sys

sys.dont_write_bytecode = True
from guide import ROOT, read  # noqa: E402

DOCUMENT = "SECURITY.md"


def problems(text):
    """Yields the files and functions that do not exist, and rows without a test."""
    file, code = None, ""
    for name in re.findall(r"`([^`]+)`", text):
        if re.fullmatch(r"[a-z_/-]+\.rs", name):
            file, code = name, read(name) if (ROOT / name).is_file() else ""
            if not code:
                yield f"there is no {name}"
        elif file and re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+){2,}", name):
            if not re.search(rf"#\[(tokio::)?test.*?\]\s*(async )?fn {name}\(", code):
                yield f"{file} has no test {name}"
    rows = re.findall(r"^\| (API\d+) .*?\|(.*)$", text, re.MULTILINE)
    if len(rows) != 10:
        yield f"the table has {len(rows)} of ten risks"
    for risk, rest in rows:
        if ".rs`" not in rest:
            yield f"{risk} has no test"


found = [f"{DOCUMENT}: {problem}" for problem in problems(read(DOCUMENT))]
print("\n".join(found) or "security: every test that SECURITY.md names exists")
sys.exit(bool(found))
