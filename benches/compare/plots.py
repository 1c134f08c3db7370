"""Plots and tables of measurements."""

import datetime
import os
import pathlib
import platform

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt


def machine():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return f"{line.split(':')[1].strip()}, {len(os.sched_getaffinity(0))} cores"
    return f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores"


def draw(options, name, title, across, up, lines, logarithmic=False):
    """`lines`: by label, up by across."""
    plt.rcParams["svg.hashsalt"] = name
    figure, axes = plt.subplots(figsize=(7, 4.2))
    for label, points in lines.items():
        axes.plot(list(points), list(points.values()), marker="o", label=label)
    axes.set_xscale("log", base=10 if logarithmic else 2)
    ticks = sorted({at for points in lines.values() for at in points})
    axes.set_xticks(ticks, [f"{at:,}" for at in ticks])
    axes.minorticks_off()
    if logarithmic:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.set(title=title, xlabel=across, ylabel=up)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.text(0.99, 0.01, f"{machine()}, {datetime.date.today()}", ha="right", size=7, alpha=0.7)
    figure.tight_layout()
    options.plots.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.plots / f"scaling-{name}.svg", metadata={"Date": None})
    plt.close(figure)
    print(f"\n{title} ({up})")
    print(f"{across:<34}" + "".join(f"{at:>10,}" for at in ticks))
    for label, points in lines.items():
        print(f"{label:<34}" + "".join(f"{points[at]:>10.1f}" if at in points else " " * 10 for at in ticks), flush=True)
