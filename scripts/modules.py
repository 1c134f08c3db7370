#!/usr/bin/env python3
"""Checks in which direction the backend's modules use each other.

docs/architecture.md lists the modules in layers, in the block after "Each module uses only modules of lines above its
own". This script reads every `crate::…` path below backend/src (unit tests aside) and fails where a module uses one of
its own line or of a line below, which includes every circle, and where the list is not that of the modules.
"""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
SOURCE = ROOT / "backend/src"
DOCUMENT = ROOT / "docs/architecture.md"
INTRODUCTION = "Each module uses only modules of lines above its own"
# The same module, compiled in the place of the other.
ALIASES = {"no_traces": "traces"}
# What puts modules together is above all of them.
ROOTS = {"lib", "main"}


def layers(document):
    """The line of each module in the list, from 0."""
    found = re.search(INTRODUCTION.replace(" ", r"\s") + r".*?^```text\n(.*?)^```", document, re.DOTALL | re.MULTILINE)
    if not found:
        sys.exit(f"{DOCUMENT}: there is no list of modules after {INTRODUCTION!r}")
    lines = found.group(1).splitlines()
    return {module: line for line, modules in enumerate(lines) for module in modules.split()}


def module_of(path):
    name = path.parts[0].removesuffix(".rs")
    return ALIASES.get(name, name)


def used_by(text):
    """The top modules that the `crate::…` paths of a file begin with."""
    text = re.split(r"^#\[cfg\(test\)\]\nmod \w+ \{", text, maxsplit=1, flags=re.MULTILINE)[0]
    text = re.sub(r"//.*", "", text)
    modules = set(re.findall(r"\bcrate::(\w+)", text))
    for start in re.finditer(r"\bcrate::\{", text):
        depth, expected, at = 1, True, start.end()
        while depth and at < len(text):
            name = re.compile(r"\w+").match(text, at)
            if name:
                if depth == 1 and expected:
                    modules.add(name.group())
                expected, at = False, name.end()
                continue
            depth += {"{": 1, "}": -1}.get(text[at], 0)
            expected = expected or (depth == 1 and text[at] == ",")
            at += 1
    return {ALIASES.get(module, module) for module in modules}


def problems(source, line_of):
    files = sorted(source.rglob("*.rs"))
    modules = {module_of(file.relative_to(source)) for file in files} - ROOTS
    for module in sorted(modules - line_of.keys()):
        yield f"{module} is missing in the list of modules"
    for module in sorted(line_of.keys() - modules):
        yield f"{module} is in the list of modules, but does not exist"
    for file in files:
        user = module_of(file.relative_to(source))
        if user not in line_of:
            continue
        for used in sorted(used_by(file.read_text()) & line_of.keys() - {user}):
            if line_of[used] >= line_of[user]:
                yield f"{file.relative_to(source)} uses crate::{used}, which is not above {user} in the list of modules"


def main():
    found = list(problems(SOURCE, layers(DOCUMENT.read_text())))
    for problem in found:
        print(f"backend/src: {problem} (docs/architecture.md)", file=sys.stderr)
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
