"""The report of `make bench`: a list of what was measured, ours beside the peer's."""

import json
import os
import pathlib


def entry(name, ours, peer, unit, ratio, peak_rss_mb):
    """`ratio`: how many times better than the peer, above 1 is ahead. `peak_rss_mb`: our process' memory at its most."""
    return {"name": name, "ours": round(ours, 4), "peer": round(peer, 4), "unit": unit, "ratio": round(ratio, 4),
            "peak_rss_mb": round(peak_rss_mb, 1)}


def write(path, entries):
    """Puts the entries in the report, in the place of those of the same names."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    there = json.loads(path.read_text()) if path.exists() else []
    new = {one["name"] for one in entries}
    whole = [one for one in there if one["name"] not in new] + entries
    part = path.with_suffix(".part")
    part.write_text(json.dumps(sorted(whole, key=lambda one: one["name"]), indent=2) + "\n")
    os.replace(part, path)
    for one in entries:
        print(f"{one['name']:<28}{one['ours']:>12.3f}{one['peer']:>12.3f}  {one['unit']:<14}{one['ratio']:>8.2f}x"
              f"{one['peak_rss_mb']:>9.1f} MB", flush=True)
