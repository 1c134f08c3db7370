"""Holds a report of `make bench` against the ratios that were recorded in benches/compare/recorded.json.

recorded.py REPORT            fails where a ratio is more than 20 % worse than recorded, and says which
recorded.py REPORT --record   records what the report has
"""

import argparse
import json
import pathlib
import sys

RECORDED = pathlib.Path(__file__).with_name("recorded.json")
# What a ratio may lose against the recorded one. The peers' runs take turns with ours, so that a slower machine makes both
# slower; a busy one does not always.
MOST_LOST = 0.2


def compare(recorded, measured):
    """Lines that say what is worse than it may be, and what was not measured."""
    worse = [f"{name}: {measured[name]:.2f} times the peer, recorded are {ratio:.2f}"
             for name, ratio in recorded.items() if name in measured and measured[name] < ratio * (1 - MOST_LOST)]
    return worse, [name for name in recorded if name not in measured]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=pathlib.Path)
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    measured = {entry["name"]: entry["ratio"] for entry in json.loads(options.report.read_text())}
    recorded = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
    if options.record:
        RECORDED.write_text(json.dumps(dict(sorted((recorded | measured).items())), indent=2) + "\n")
        return
    worse, missing = compare(recorded, measured)
    if missing:
        print(f"Not measured this time: {', '.join(missing)}")
    if worse:
        sys.exit("More than 20 % worse than recorded:\n  " + "\n  ".join(worse))
    print(f"No ratio is more than 20 % worse than recorded ({len(recorded) - len(missing)} compared).")


if __name__ == "__main__":
    main()
