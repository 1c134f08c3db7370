#!/usr/bin/env python3
"""Checks in which direction the backend's modules use each other.

docs/architecture.md lists the modules in layers, in the block after "Each module uses only modules of lines above its
own". This script reads every `crate::…` path below backend/src (unit tests aside) and fails where a module uses one of
its own line or of a line below, which includes every circle, and where the list is not that of the modules.

It also fails where the server is built with the readers of published weights (docs/decisions/0039).
"""
import pathlib
import re
import sys
import tomllib

ROOT = pathlib.Path(__file__).resolve().parent.parent
SOURCE = ROOT / "backend/src"
DOCUMENT = ROOT / "docs/architecture.md"
INTRODUCTION = "Each module uses only modules of lines above its own"
# The same module, compiled in the place of the other.
ALIASES = {"no_traces": "traces"}
# What puts modules together is above all of them.
ROOTS = {"lib", "main"}
# The crate that reads published weights, for facepipe and for tests.
READERS = "facepipe-convert"


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


def crates_of(manifest, members):
    """The crates of this workspace that the crate of a manifest is built with, itself included; not those of its tests."""
    crates, new = set(), [manifest]
    while new:
        crate = tomllib.loads((ROOT / new.pop() / "Cargo.toml").read_text())
        crates.add(crate["package"]["name"])
        tables = [crate, *crate.get("target", {}).values()]
        used = {name for table in tables for name in table.get("dependencies", {})} & members.keys()
        new += [members[name] for name in used - crates]
    return crates


def main():
    found = [f"backend/src: {problem} (docs/architecture.md)" for problem in problems(SOURCE, layers(DOCUMENT.read_text()))]
    dependencies = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["dependencies"]
    members = {name: source["path"] for name, source in dependencies.items() if "path" in source}
    if READERS not in members:
        found.append(f"Cargo.toml: there is no {READERS}")
    if READERS in crates_of("backend", members):
        found.append(f"backend/Cargo.toml: the server is built with {READERS} (docs/decisions/0039)")
    for problem in found:
        print(problem, file=sys.stderr)
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
