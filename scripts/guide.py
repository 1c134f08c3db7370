#!/usr/bin/env python3
"""The guide: README, docs/, the elements, the programs and the API as one static site.

    guide.py check                   checks that the guide names every page and that no link is dead; needs no build
    guide.py build MDBOOK BUILD OUT  builds it from the programs and the plugin in BUILD (target/debug) into OUT
    guide.py sources BUILD OUT       writes only the sources for mdBook, into the new folder OUT

The output is Markdown for mdBook, in the order of docs/guide/SUMMARY.md. Pages of the repository keep their links:
those to other pages lead to them, those to any other file to a copy of it in the site. The elements' pages are from
gst-inspect-1.0 and the sources' documentation, the programs' from their --help, the API's from docs/openapi.json.
"""

import html.parser
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parent.parent
GUIDE = ROOT / "docs/guide"
SUMMARY = "docs/guide/SUMMARY.md"
# Pages of the summary that are generated.
GENERATED = ("elements", "api", "facepipe-backend", "facepipe")
# Markdown files of the repository that are not pages of the guide: files of tests, and their companions.
NOT_PAGES = re.compile(r"^(tests/|packaging/|docs/guide/|\.)")


class Problem(Exception):
    """A problem that somebody must fix."""


def repository():
    """Returns every file of the repository, including new ones that are not committed yet."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0:
        names = listed.stdout.splitlines()
    else:  # A source archive.
        names = [str(path.relative_to(ROOT)) for path in ROOT.rglob("*") if "target" not in path.parts]
    return sorted(name for name in names if (ROOT / name).is_file())


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


# Markdown


CODE = re.compile(r"(`+)(?:(?!`).|(?!\1)`)*?\1")
LINK = re.compile(r"(\]\(\s*<?)([^)\s>]+)|(\b(?:src|href)=\")([^\"]+)")


def prose(text):
    """Yields the lines of a text, each with whether it is outside of a code block."""
    fence = None
    for line in text.splitlines():
        mark = re.match(r" {0,3}(```+|~~~+)", line)
        if fence is None and mark:
            fence = mark[1]
            yield line, False
        elif fence is not None:
            yield line, False
            if line.strip().startswith(fence) and not line.strip().strip(fence[0]):
                fence = None
        else:
            yield line, True


def without_code(line):
    """Returns the line with its code replaced by blanks, so that columns stay the same."""
    return CODE.sub(lambda code: " " * len(code[0]), line)


def links(text):
    """Yields line number and target of each link and picture."""
    for number, (line, is_prose) in enumerate(prose(text), 1):
        if is_prose:
            for link in LINK.finditer(without_code(line)):
                yield number, link[2] or link[4]


def change_links(text, change):
    """Returns the text with `change(target)` as the target of each link and picture."""
    changed = []
    for line, is_prose in prose(text):
        if is_prose:
            plain, end = without_code(line), 0
            parts = []
            for link in LINK.finditer(plain):
                group = 2 if link[2] else 4
                parts += [line[end:link.start(group)], change(link[group])]
                end = link.end(group)
            line = "".join([*parts, line[end:]])
        changed.append(line)
    return "\n".join(changed) + "\n"


def plain(markdown):
    """Returns a heading's text without its markup."""
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", markdown)
    return re.sub(r"[`*]", "", text).strip()


def headings(text):
    for line, is_prose in prose(text):
        heading = re.match(r"(#{1,6})\s+(.*?)\s*#*$", line)
        if is_prose and heading:
            yield len(heading[1]), heading[2]


def title(name):
    return next((plain(text) for level, text in headings(read(name)) if level == 1), name)


def slug(heading):
    """Returns a heading's anchor, as GitHub and mdBook generate it."""
    kept = "".join(c for c in plain(heading).lower() if c.isalnum() or c in "-_ ")
    return kept.replace(" ", "-")


def anchors(text):
    found = set()
    for _, heading in headings(text):
        base = name = slug(heading)
        times = 0
        while name in found:
            times += 1
            name = f"{base}-{times}"
        found.add(name)
    return found | set(re.findall(r"<[^>]*\b(?:id|name)=\"([^\"]+)\"", text))


def resolve(page, target):
    """Resolves a link of a page to a path of the repository and an anchor; None for an external link."""
    parts = urlsplit(target)
    if parts.scheme or parts.netloc:
        return None
    path = unquote(parts.path)
    if path.startswith("/"):
        return path, parts.fragment
    where = os.path.normpath(PurePosixPath(page).parent / path) if path else page
    return where, unquote(parts.fragment)


# The summary


ENTRY = re.compile(r"^(\s*(?:- )?)\[([^\]]*)\]\(([^)]*)\)\s*$")


def summary():
    """Yields the summary's lines: the text before a page's title, the title, and the page; or another line unchanged."""
    for line in read(SUMMARY).splitlines():
        entry = ENTRY.match(line)
        if not entry:
            yield line, None, None
        elif entry[3] in GENERATED:
            yield entry[1], entry[2], entry[3]
        else:
            path, _ = resolve(SUMMARY, entry[3])
            yield entry[1], entry[2], path


def is_page(name):
    return name.endswith(".md") and not NOT_PAGES.match(name)


def pages(files):
    """Returns the pages of the guide in order; a folder stands for all pages in it."""
    named = []
    for _, _, page in summary():
        if page and page not in GENERATED:
            named += [file for file in files if is_page(file) and str(PurePosixPath(file).parent) == page] or [page]
    return named


# Checks


def check():
    files = repository()
    folders = {str(parent) for file in files for parent in PurePosixPath(file).parents}
    named, problems = pages(files), []
    for page in sorted({page for page in named if named.count(page) > 1}):
        problems.append(f"{SUMMARY}: {page} is there more than once")
    for page in sorted(set(named) - set(files)):
        problems.append(f"{SUMMARY}: there is no {page}")
    for page in sorted(set(filter(is_page, files)) - set(named)):
        problems.append(f"{SUMMARY} lacks {page}: every page is for some reader; name it where that reader looks")
    texts = {file: read(file) for file in files if file.endswith(".md")}
    places = {page: anchors(text) for page, text in texts.items()}
    checked = 0
    for page, text in texts.items():
        if page == SUMMARY:
            continue
        for line, target in links(text):
            where = resolve(page, target)
            if where is None:
                continue
            checked += 1
            path, anchor = where
            if path not in files and path not in folders:
                problems.append(f"{page}:{line}: a dead link: there is no {target}")
            elif anchor and path in places and anchor not in places[path]:
                near = ", ".join(sorted(places[path])[:40])
                problems.append(f"{page}:{line}: a dead link: {path} has no heading #{anchor} (there are: {near})")
    if problems:
        raise Problem("\n".join(problems))
    print(f"guide: {len(named)} pages, {checked} links")


# The elements


def run(command, **options):
    done = subprocess.run(command, capture_output=True, text=True, **options)
    if done.returncode:
        raise Problem(f"{' '.join(map(str, command))}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def table(header, rows):
    def line(cells):
        return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
    return "\n".join([line(header), line("---" for _ in header), *map(line, rows)]) + "\n"


def sections(said):
    """Returns gst-inspect-1.0's output for an element, by its headings."""
    found, name = {}, None
    for line in said.splitlines():
        heading = re.match(r"^([A-Z][A-Za-z ]+):\s*$", line)
        if heading:
            name = heading[1]
            found[name] = []
        elif re.match(r"^\S", line):
            name = None
        elif name:
            found[name].append(line)
    return found


def properties(lines):
    """Yields name and description lines of each property."""
    found = []
    for line in lines:
        begin = re.match(r"^  (\S+)\s*: (.*)$", line)
        if begin:
            found.append((begin[1], [begin[2]]))
        elif line.strip() and found:
            found[-1][1].append(line.strip())
    return found


def tidy(line):
    return re.sub(r"\s+", " ", line).strip()


def describe_property(name, said):
    """Formats a property in Markdown from gst-inspect's lines: text, flags, type, and values, if it has any."""
    text, rest = said[0], said[1:]
    flags = next((line.removeprefix("flags: ") for line in rest if line.startswith("flags: ")), None)
    if flags is None or len(rest) < 2:
        raise Problem(f"gst-inspect-1.0's lines about the property {name} are not understood: {said}")
    rest = rest[rest.index(f"flags: {flags}") + 1:]
    kind, values = tidy(rest[0]), [re.match(r"^\((-?\w+)\): (\S+)\s+- (.*)$", line) for line in rest[1:]]
    default = re.search(r"\s*Default: (.*)$", kind)
    kind = (kind[:default.start()] if default else kind).rstrip(".")
    # A value of an enumeration: its number, and its name in pipelines.
    default = re.sub(r'^-?\w+, ', "", default[1]) if default else None
    kind = re.sub(r"^Enum \"\w+\"$", "one of the values below", kind)
    kind = re.sub(r"^Flags \"\w+\"$", "any of the values below", kind)
    kind = re.sub(r"^Boxed pointer of type \"(\w+)\"$", r"`\1`", kind)
    kind = re.sub(r"\. Range: (.*?) - (.*)$", r", \1 to \2", kind)
    facts = [kind] + ([f"default `{default}`"] if default and default != "null" else [])
    if "writable" not in flags:
        facts.append("can only be read")
    elif "readable" not in flags:
        facts.append("can only be set")
    changed = re.search(r"changeable (only )?in .*", flags)
    if changed and changed[1]:
        facts.append("cannot be changed while the pipeline plays")
    if "controllable" in flags:
        facts.append("can be controlled")
    lines = [f"### `{name}`", "", text.rstrip(".") + ".", "", f"*{'; '.join(facts)}*", ""]
    known = [value for value in values if value]
    if known:
        lines += [table(["value", "meaning"], [(f"`{value[2]}`", value[3]) for value in known])]
    return "\n".join(lines)


def documentation():
    """Returns the documentation of each element from its sources, in Markdown."""
    found = {}
    for file in sorted((ROOT / "gst-plugins/src").rglob("*.rs")):
        for comment in re.findall(r"/\*\*\n(.*?)\*/", file.read_text(encoding="utf-8"), re.S):
            lines = [re.sub(r"^ \* ?", "", line) for line in comment.splitlines()]
            if not lines[0].startswith("SECTION:element-"):
                continue
            name = lines[0].removeprefix("SECTION:element-").strip()
            # Title and summary come from the element itself.
            body = "\n".join(line for line in lines[1:] if not line.startswith("@")).strip()
            found[name] = re.sub(r"^\|\[\n(.*?)^\]\|", r"```sh\n\1```", body, flags=re.S | re.M)
    return found


def elements(build):
    """Returns a page for each element, and one about all: name, title and text."""
    plugin = build / "libgstfacepipe.so"
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("GST_")},
            "LC_ALL": "C.UTF-8", "GST_INSPECT_NO_COLORS": "1", "PAGER": "cat", "NO_AT_BRIDGE": "1",
            "GST_REGISTRY": f"{folder}/registry", "GST_PLUGIN_PATH": folder,
        }
        os.symlink(plugin.resolve(), f"{folder}/{plugin.name}")
        listed = run(["gst-inspect-1.0", plugin.resolve()], env=environment)
        names = sorted(set(re.findall(r"^  facepipe-([\w-]+): ", listed, re.M)))
        if not names:
            raise Problem(f"gst-inspect-1.0 finds no element in {plugin}:\n{listed}")
        said = {name: run(["gst-inspect-1.0", f"facepipe-{name}"], env=environment) for name in names}
    documented = documentation()
    order = ["facedetect", "facetrack", "facecrop", "facesink-http", "faceoverlay"]
    names.sort(key=lambda name: (order.index(name) if name in order else len(order), name))
    made, rows = [], []
    for name in names:
        parts = sections(said[name])
        details = dict(re.findall(r"^\s{2}(\S+)\s+(.*)$", "\n".join(parts["Factory Details"]), re.M))
        if name not in documented:
            raise Problem(f"gst-plugins/src has no documentation of the element {name} (SECTION:element-{name})")
        text = [f"# {name}", "", details["Description"] + ".", "", documented[name], ""]
        text += ["## Pads", ""]
        pads = "\n".join(line[2:].rstrip() for line in parts["Pad Templates"]).strip("\n")
        text += ["```text", re.sub(r"\(string\)", "", pads), "```", ""]
        own = [(key, lines) for key, lines in properties(parts["Element Properties"]) if key not in ("name", "parent")]
        text += ["## Properties", "", *(describe_property(key, lines) for key, lines in own)]
        for heading, lines in parts.items():
            if heading in ("Element Signals", "Element Actions"):
                signals = "\n".join(line[2:].rstrip() for line in lines).strip("\n")
                text += ["## " + heading.removeprefix("Element "), "", "```text", signals, "```", ""]
        made.append((f"elements/{name}.md", name, "\n".join(text)))
        rows.append((f"[{name}]({name}.md)", details["Description"]))
    index = [
        "# The elements", "",
        "`libgstfacepipe.so` has these elements. Each is also registered as `facepipe-<name>`: other plugins have a",
        "`facedetect` and a `faceoverlay`, too, and the longer name is always ours. These pages are from",
        "`gst-inspect-1.0`, which says the same of the version that is installed.", "",
        table(["element", "purpose"], rows), "",
        "This is their order in a pipeline; leave out those that you do not need:", "",
        "```sh",
        "gst-launch-1.0 v4l2src ! decodebin ! facedetect ! facetrack ! facecrop ! \\",
        "    facesink-http backend-url=http://127.0.0.1:8080 camera-id=gate-1 camera-location=Lobby",
        "```", "",
    ]
    return [("elements/index.md", None, "\n".join(index)), *made]


# The programs


def program(build, name):
    """Returns a page for a program with the help of all its commands."""
    environment = {"PATH": os.environ["PATH"], "HOME": "/root", "COLUMNS": "100", "LC_ALL": "C.UTF-8"}

    def help_of(command):
        said = run([build / name, *command, "--help"], env=environment)
        section = re.search(r"^Commands:\n(.*?)(?:\n\n|\Z)", said, re.S | re.M)
        below = re.findall(r"^  (\S+)", section[1], re.M) if section else []
        yield command, said
        for word in below:
            if word != "help":
                yield from help_of([*command, word])

    text = [f"# The program {name}", "", f"The output of `{name} --help`, and of each of its commands.", ""]
    for command, said in help_of([]):
        text += [f"## `{' '.join([name, *command])}`", "", "```text", said.rstrip(), "```", ""]
    return [(f"programs/{name}.md", None, "\n".join(text))]


# The API


class Api:
    """The pages of the API: one per tag, and one for the types."""

    def __init__(self):
        self.document = json.loads(read("docs/openapi.json"))
        self.schemas = self.document["components"]["schemas"]

    def resolve(self, value):
        while "$ref" in value:
            place = self.document
            for part in value["$ref"].removeprefix("#/").split("/"):
                place = place[part.replace("~1", "/").replace("~0", "~")]
            value = place
        return value

    def kind(self, schema):
        """Describes a type in a few words, with a link if it has a name."""
        if "$ref" in schema:
            name = schema["$ref"].rsplit("/", 1)[1]
            return f"[{name}](types.md#{slug(name)})"
        if "allOf" in schema:
            kinds = [self.kind(part) for part in schema["allOf"] if "$ref" in part] or ["object"]
            return kinds[0]
        if schema.get("type") == "array":
            most = f", at most {schema['maxItems']}," if "maxItems" in schema else ""
            return f"list{most} of {self.kind(schema.get('items', {}))}"
        words = schema.get("format") if schema.get("format") in ("binary", "date-time", "uuid") else None
        words = words or schema.get("type", "anything")
        if "enum" in schema:
            words = ", ".join(f"`{value}`" for value in schema["enum"])
        within = [f"{name} {schema[key]}" for key, name in [("minimum", "from"), ("maximum", "to")] if key in schema]
        words = " ".join([words, *within])
        if "maxLength" in schema:
            words += f" of {schema.get('minLength', 0)} to {schema['maxLength']} characters"
        if "default" in schema:
            words += f", default `{json.dumps(schema['default'], ensure_ascii=False)}`"
        return words + (", or null" if schema.get("nullable") else "")

    def fields(self, schema):
        schema = self.resolve(schema)
        required = schema.get("required", [])
        rows = []
        for name, field in schema.get("properties", {}).items():
            needed = "" if name in required else " (may be missing)"
            text = field.get("description") or self.resolve(field).get("description", "")
            rows.append((f"`{name}`{needed}", self.kind(field), tidy(text)))
        return table(["field", "type", "meaning"], rows) if rows else ""

    def operation(self, method, path, operation):
        text = [f"## {method.upper()} `{path}`", "", f"**{operation.get('summary', '')}.**", ""]
        text += [self.demote(operation.get("description", "")), ""]
        if operation.get("security") == []:
            text += ["Needs no token.", ""]
        if operation.get("parameters"):
            rows = [(f"`{p['name']}`", p["in"] + ("" if p.get("required") else ", optional"),
                     self.kind(p.get("schema", {})), tidy(p.get("description", "")))
                    for p in map(self.resolve, operation["parameters"])]
            text += ["Parameters:", "", table(["name", "where", "type", "meaning"], rows), ""]
        for media, body in operation.get("requestBody", {}).get("content", {}).items():
            schema = body["schema"]
            named = f", {self.kind(schema)}" if "$ref" in schema else ""
            text += [f"Body: `{media}`{named}.", "", self.fields(schema), ""]
        errors = []
        for status, answer in sorted(operation["responses"].items()):
            answer = self.resolve(answer)
            if not status.startswith(("2", "3")):
                lines = [line.removeprefix("- ") for line in answer["description"].splitlines()]
                errors += [(status, line) for line in lines if line]
                continue
            contents = answer.get("content", {})
            kinds = [f"`{media}`" + (f", {self.kind(body['schema'])}" if media == "application/json" else "")
                     for media, body in contents.items()]
            text += [f"Answer **{status}**: {tidy(answer['description']).rstrip('.')}. {'; or '.join(kinds)}", ""]
            for media, body in contents.items():
                if "example" in body:
                    example = body["example"]
                    is_json = media == "application/json"
                    shown = json.dumps(example, indent=2, ensure_ascii=False) if is_json else str(example).rstrip()
                    text += [f"```{'json' if is_json else 'text'}", shown, "```", ""]
        if errors:
            rows = [(status, *(line.split(": ", 1) if ": " in line else (line, ""))) for status, line in errors]
            text += ["Errors:", "", table(["status", "code", "message"], rows), ""]
        return "\n".join(text)

    @staticmethod
    def demote(text):
        return re.sub(r"^(#+) ", r"##\1 ", text, flags=re.M)

    def pages(self):
        made, tags = [], self.document["tags"]
        calls = {tag["name"]: [] for tag in tags}
        for path, item in self.document["paths"].items():
            for method, operation in item.items():
                if method in ("get", "post", "put", "patch", "delete"):
                    calls[operation["tags"][0]].append((path, method, operation))
        rows = []
        for tag in tags:
            name, file = tag["name"], slug(tag["name"])
            text = [f"# {name}", "", tag["description"], ""]
            text += [self.operation(method, path, operation) for path, method, operation in calls[name]]
            made.append((f"api/{file}.md", name, "\n".join(text)))
            for path, method, operation in calls[name]:
                heading = slug(f"{method.upper()} {path}")
                rows.append((f"[{method.upper()} `{path}`]({file}.md#{heading})", operation.get("summary", "")))
        text = ["# The HTTP API", "", self.document["info"]["description"], "", "## All calls", ""]
        text += ["A running server has these at `/docs`, where they can be tried out, and for programs at `/openapi.json`.", ""]
        index = ("api/index.md", None, "\n".join(text) + "\n" + table(["call", "purpose"], rows))
        types = ["# Types", "", "The types of request and response bodies.", ""]
        for name, schema in sorted(self.schemas.items()):
            types += [f"## {name}", "", schema.get("description", ""), ""]
            if "enum" in schema:
                types += [", ".join(f"`{value}`" for value in schema["enum"]), ""]
            types += [self.fields(schema), ""]
        return [index, *made, ("api/types.md", "Types", "\n".join(types))]


# The site


def place(name):
    """Returns the place of a repository's file in the guide."""
    name = re.sub(r"(^|/)README\.md$", r"\1index.md", name)
    return name.removeprefix("docs/")


def relative(target, page):
    return os.path.relpath(target, PurePosixPath(page).parent)


class Book:
    """Writes the sources for mdBook into a folder."""

    def __init__(self, folder, build):
        self.folder, self.build = folder, build
        self.files = repository()
        self.named = pages(self.files)
        self.copies = set()

    def write(self, name, text):
        file = self.folder / "src" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")

    def page(self, name):
        def change(target):
            where = resolve(name, target)
            if where is None:
                return target
            path, anchor = where
            if path in self.files:
                to = place(path)
                if path not in self.named:
                    self.copies.add(path)
            else:
                to = f"{path.removeprefix('docs/')}/index.md"
                if not (ROOT / path).is_dir() or not any(PurePosixPath(n).parent == PurePosixPath(path) for n in self.named):
                    raise Problem(f"{name}: the link {target} leads to a folder without pages")
            return relative(to, place(name)) + (f"#{anchor}" if anchor else "")

        self.write(place(name), change_links(read(name), change))

    def summary(self):
        made = {
            "elements": elements(self.build),
            "api": Api().pages(),
            "facepipe-backend": program(self.build, "facepipe-backend"),
            "facepipe": program(self.build, "facepipe"),
        }
        lines = []
        for before, name, page in summary():
            if name is None:
                lines.append(before)
                continue
            deeper = " " * (len(before) - len(before.lstrip()) + 4) + "- "
            if page in made:
                (first, _, text), *rest = made[page]
                self.write(first, text)
                lines.append(f"{before}[{name}]({first})")
                for file, heading, text in rest:
                    self.write(file, text)
                    lines.append(f"{deeper}[{heading}]({file})")
            elif page in self.files:
                lines.append(f"{before}[{name}]({place(page)})")
            else:
                within = [file for file in self.named if str(PurePosixPath(file).parent) == page]
                index = f"{page.removeprefix('docs/')}/index.md"
                entries = [f"- [{title(file)}]({relative(place(file), index)})" for file in within]
                self.write(index, "\n".join([f"# {name}", "", *entries, ""]))
                lines.append(f"{before}[{name}]({index})")
                lines += [f"{deeper}[{title(file)}]({place(file)})" for file in within]
        self.write("SUMMARY.md", "\n".join(lines) + "\n")

    def make(self):
        for file in ("book.toml", "guide.css"):
            shutil.copy(GUIDE / file, self.folder / file)
        self.summary()
        for name in self.named:
            self.page(name)
        for name in sorted(self.copies):
            target = self.folder / "src" / place(name)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, target)


SCRIPT = re.compile(r"<script>(.*?)</script>", re.S)


def move_scripts(site):
    """Moves scripts from mdBook's pages into files: the server allows pages to run no others."""
    import hashlib
    folder = site / "scripts"
    folder.mkdir()
    for file in sorted(site.rglob("*.html")):
        def move(script):
            name = f"{hashlib.sha256(script[1].encode()).hexdigest()[:12]}.js"
            (folder / name).write_text(script[1], encoding="utf-8")
            return f'<script src="{os.path.relpath(folder / name, file.parent)}"></script>'
        file.write_text(SCRIPT.sub(move, file.read_text(encoding="utf-8")), encoding="utf-8")


class Page(html.parser.HTMLParser):
    """Collects anchors and references of a page."""

    def __init__(self):
        super().__init__()
        self.anchors, self.references, self.foreign = set(), [], []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.anchors |= {value for value in (values.get("id"), tag == "a" and values.get("name")) if value}
        for key in ("href", "src", "data", "poster"):
            target = values.get(key)
            if target is None:
                continue
            if re.match(r"(?:\w+:)?//", target):
                if tag != "a":
                    self.foreign.append(target)
            elif not re.match(r"(mailto|data|javascript):", target):
                self.references.append(target)
        if any(key.startswith("on") for key in values) or (tag == "script" and "src" not in values):
            self.foreign.append(f"a script within the page, in <{tag}>")


def check_site(site):
    parsed, problems = {}, []
    for file in sorted(site.rglob("*.html")):
        parsed[file] = Page()
        parsed[file].feed(file.read_text(encoding="utf-8"))
    for file, page in parsed.items():
        name = file.relative_to(site)
        problems += [f"{name} needs a file outside the guide: {what}" for what in page.foreign]
        for reference in page.references:
            parts = urlsplit(reference)
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            if target.is_dir():
                target /= "index.html"
            if not target.is_file() or not target.is_relative_to(site.resolve()):
                problems.append(f"{name}: a dead link: {reference}")
            elif parts.fragment and target in parsed and unquote(parts.fragment) not in parsed[target].anchors:
                problems.append(f"{name}: a dead link: {reference} has no such heading")
    for file in site.rglob("*.css"):
        for target in re.findall(r"url\(['\"]?([^)'\"]+)", file.read_text(encoding="utf-8")):
            if not target.startswith("data:") and not (file.parent / target.split("?")[0].split("#")[0]).is_file():
                problems.append(f"{file.relative_to(site)}: there is no {target}")
    if problems:
        raise Problem("\n".join(problems))
    return len(parsed), sum(len(page.references) for page in parsed.values())


def build_site(mdbook, build, out):
    check()
    out = Path(out).resolve()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        Book(folder, Path(build).resolve()).make()
        run([Path(mdbook).resolve(), "build", "--dest-dir", folder / "site", folder])
        site = folder / "site"
        # For a service that is not ours.
        (site / ".nojekyll").unlink(missing_ok=True)
        move_scripts(site)
        made, references = check_site(site)
        shutil.rmtree(out, ignore_errors=True)
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(site, out)
    print(f"guide: {made} pages with {references} links in {out}")


def main(arguments):
    match arguments:
        case ["check"]:
            check()
        case ["build", mdbook, build, out]:
            build_site(mdbook, build, out)
        case ["sources", build, out]:
            Path(out).mkdir(parents=True)
            Book(Path(out), Path(build).resolve()).make()
        case _:
            raise Problem(__doc__)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except Problem as problem:
        sys.exit(f"guide: {problem}" if "\n" not in str(problem) else f"guide:\n{problem}")
