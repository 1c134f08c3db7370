#!/usr/bin/env python3
"""vocabulary.py

Checks docs/glossary.md against the code, and documents and comments against the glossary; needs no build.

- Every file or folder that a table names exists, and every identifier (`CamelCase`, `snake_case`) is defined in the files that its row
  names.
- No document and no comment has a word of the table “Words that are not used”.
"""

import re
import sys
from pathlib import PurePosixPath

sys.dont_write_bytecode = True
from guide import ROOT, prose, read, repository, without_code  # noqa: E402

GLOSSARY = "docs/glossary.md"
# Comments of a file, by its ending; Markdown is prose except for code.
COMMENT = {
    ".rs": re.compile(r"^\s*//[/!]?(.*)|\s//\s([^\"]*)$"),
    ".sh": re.compile(r"^\s*#(?!!)(.*)|\s#\s([^\"]*)$"),
}
COMMENT |= {ending: COMMENT[".sh"] for ending in (".py", ".toml", ".yml", ".yaml", ".env", ".conf", ".service", ".Dockerfile")}


def rows(text):
    """Yields the line number, heading and cells of each row of a table."""
    heading = ""
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("## "):
            heading = line[3:]
        elif line.startswith("| ") and not line.startswith("|---"):
            yield number, heading, [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def check_identifiers(text, files):
    """Yields the glossary's paths and identifiers that do not exist."""
    sources = {path: read(path) for path in files if path.endswith(".rs")}
    for number, heading, cells in rows(text):
        if heading.startswith("Words"):
            continue
        named = re.findall(r"`([^`]+)`", " ".join(cells[1:]))
        paths = [name for name in named if "/" in name and " " not in name]
        for path in paths:
            if not (ROOT / path).exists():
                yield f"{GLOSSARY}:{number}: there is no {path}"
        inside = [code for file, code in sources.items() if any(file == path or file.startswith(path + "/") for path in paths)]
        for name in named:
            if re.fullmatch(r"[A-Z][a-z]+([A-Z][a-z]*)*[A-Za-z]*|[a-z]+(_[a-z]+)+", name) and not any(
                re.search(rf"\b(struct|enum|trait|type|fn|mod)\s+{name}\b", code) for code in inside
            ):
                yield f"{GLOSSARY}:{number}: {name} is not defined in {', '.join(paths) or 'a file that the row names'}"


def check_words(text, files):
    """Yields the places of replaced words in documents and comments."""
    replaced = {}
    for _, heading, (old, new, *_) in rows(text):
        if heading.startswith("Words") and old != "instead of":
            replaced |= {word.strip(): new for word in old.split(",")}
    # “Told apart” is another idiom.
    pattern = re.compile(rf"\b({'|'.join(map(re.escape, replaced))})\b(?! apart)", re.I)
    for file in files:
        if not file.startswith("tests/fixtures/") and file != GLOSSARY:
            for number, sentence in enumerate(sentences(file), 1):
                for word in pattern.findall(without_code(sentence)):
                    yield f"{file}:{number}: “{word}”: {replaced[word.lower()]} ({GLOSSARY})"


def sentences(file):
    """Yields for each line of a file the part that is prose: text of a document, comment of a program."""
    ending = PurePosixPath(file).suffix
    if ending == ".md":
        yield from (line if is_prose else "" for line, is_prose in prose(read(file)))
    elif ending in COMMENT:
        comments = map(COMMENT[ending].search, read(file).splitlines())
        yield from (comment[1] or comment[2] or "" if comment else "" for comment in comments)


def main():
    text, files = read(GLOSSARY), repository()
    problems = [*check_identifiers(text, files), *check_words(text, files)]
    if problems:
        sys.exit("\n".join(problems))
    print("vocabulary: the glossary and the code agree")


if __name__ == "__main__":
    main()
