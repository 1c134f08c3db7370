#!/usr/bin/env python3
"""What packages tell of what is in them.

materials.py sbom TARGET PACKAGE…      a CycloneDX document of the crates that PACKAGE… link for TARGET, and of ONNX Runtime
materials.py licences TARGET PACKAGE…  the texts of those crates' licences
materials.py runtime ARCH FOLDER       ONNX Runtime for x86_64 or aarch64 with its licence, from its Python wheel, by pip;
                                       prints the library's name
materials.py changelog VERSION         the section of CHANGELOG.md of that version, or of what is unreleased

Nothing here depends on the time (SOURCE_DATE_EPOCH is taken for it), on the folder, or on the order of a folder's files.
"""

import datetime
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
import uuid
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LICENCE_FILE = re.compile(r"(?i)^(licen[cs]e|copying|copyright|notice|unlicense)([.\-_].*)?$")


def fail(text):
    sys.exit(f"materials: {text}")


def linked(target, names):
    """The packages of Cargo's metadata that the workspace's packages `names` link, and which of them needs which."""
    done = subprocess.run(
        ["cargo", "metadata", "--locked", "--format-version=1", f"--filter-platform={target}"],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )
    if done.returncode:
        fail("cargo metadata does not know what is linked (see above)")
    metadata = json.loads(done.stdout)
    packages = {package["id"]: package for package in metadata["packages"]}
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    roots = [package["id"] for package in packages.values() if package["name"] in names and package["source"] is None]
    if len(roots) != len(names):
        fail(f"the workspace lacks one of {', '.join(names)}")
    needs, waiting = {}, list(roots)
    while waiting:
        package = waiting.pop()
        if package in needs:
            continue
        # What only tests or build scripts use is in no program; macros run in the compiler.
        normal = [
            dependency["pkg"]
            for dependency in nodes[package]["deps"]
            if any(kind["kind"] is None for kind in dependency["dep_kinds"])
            and not any("proc-macro" in built["kind"] for built in packages[dependency["pkg"]]["targets"])
        ]
        needs[package] = sorted(set(normal))
        waiting.extend(normal)
    return packages, needs, roots


def checksums():
    lock = tomllib.loads((ROOT / "Cargo.lock").read_text())
    return {(package["name"], package["version"]): package.get("checksum") for package in lock["package"]}


def reference(package):
    return f"pkg:cargo/{package['name']}@{package['version']}"


def licences(expression):
    # Crates of old separate what may be chosen by a slash.
    return [{"expression": expression.replace("/", " OR ")}] if expression else []


def runtime(architecture):
    manifest = tomllib.loads((ROOT / "models/manifest.toml").read_text())
    for entry in manifest["file"]:
        if entry["kind"] == "runtime" and entry.get("arch") == architecture:
            source = next(source for source in entry["sources"] if "pypi" in source)
            name, _, version = source["pypi"].partition("==")
            return entry, source, name, version
    fail(f"models/manifest.toml has no ONNX Runtime for {architecture}")


def sbom(target, *names):
    packages, needs, roots = linked(target, names)
    sums = checksums()
    version = os.environ["FACEPIPE_PACKAGE_VERSION"]
    moment = datetime.datetime.fromtimestamp(int(os.environ["SOURCE_DATE_EPOCH"]), datetime.UTC)
    main = {
        "type": "application",
        "bom-ref": "facepipe",
        "name": "facepipe",
        "version": version,
        "licenses": licences("MIT OR Apache-2.0"),
        "purl": f"pkg:github/facepipe/facepipe@{os.environ['FACEPIPE_COMMIT'].rstrip('+')}",
    }
    components, dependencies = [], []
    for package in needs:
        found = packages[package]
        component = {
            "type": "library" if found["source"] or package not in roots else "application",
            "bom-ref": reference(found),
            "name": found["name"],
            "version": found["version"],
            "licenses": licences(found["license"]),
            "purl": reference(found),
        }
        if found["description"]:
            component["description"] = " ".join(found["description"].split())
        if checksum := sums.get((found["name"], found["version"])):
            component["hashes"] = [{"alg": "SHA-256", "content": checksum}]
        if found["repository"]:
            component["externalReferences"] = [{"type": "vcs", "url": found["repository"]}]
        components.append(component)
        dependencies.append({"ref": reference(found), "dependsOn": sorted({reference(packages[need]) for need in needs[package]})})
    entry, _, name, of = runtime(target.partition("-")[0])
    library = f"pkg:pypi/{name}@{of}"
    components.append({
        "type": "library", "bom-ref": library, "name": "ONNX Runtime", "version": of, "purl": library,
        "licenses": licences(entry["licence"]), "hashes": [{"alg": "SHA-256", "content": entry["sha256"]}],
    })
    dependencies.append({"ref": library, "dependsOn": []})
    tops = sorted([reference(packages[root]) for root in roots] + [library])
    dependencies.append({"ref": "facepipe", "dependsOn": tops})
    document = {
        "$schema": "http://cyclonedx.org/schema/bom-1.5.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "timestamp": moment.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "component": main,
            "properties": [{"name": "facepipe:target", "value": target}],
        },
        "components": sorted(components, key=lambda component: component["bom-ref"]),
        "dependencies": sorted(dependencies, key=lambda dependency: dependency["ref"]),
    }
    # The same content has the same number.
    content = json.dumps(document, sort_keys=True)
    document["serialNumber"] = f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, content)}"
    json.dump(document, sys.stdout, indent=1, ensure_ascii=False)
    print()


def licence_texts(target, *names):
    packages, needs, _ = linked(target, names)
    texts, without = {}, []
    for package in needs:
        found = packages[package]
        if not found["source"]:
            continue
        folder = Path(found["manifest_path"]).parent
        files = sorted(file for file in folder.iterdir() if file.is_file() and LICENCE_FILE.match(file.name))
        called = f"{found['name']} {found['version']} ({found['license'] or 'see its text'})"
        if not files:
            authors = ", ".join(found["authors"])
            without.append(f"{called}{f', by {authors}' if authors else ''}, {found['repository'] or 'no repository'}")
        for file in files:
            text = "\n".join(line.rstrip() for line in file.read_text(errors="replace").strip().splitlines())
            texts.setdefault(text, []).append(called)
    print("The programs contain these libraries. Each text is followed by none but its own; its libraries stand above it.\n")
    for text, of in sorted(texts.items(), key=lambda item: (sorted(set(item[1])), item[0])):
        print("=" * 80)
        print("\n".join(sorted(set(of))))
        print("-" * 80)
        print(text, end="\n\n")
    print("=" * 80)
    print("These come without a text of their own:\n")
    print("\n".join(sorted(without)))


def fetch_runtime(architecture, folder):
    folder = Path(folder)
    entry, source, name, version = runtime(architecture)
    library = folder / entry["file"]
    # The library is the last: where it is right, its licence is there in full.
    wanted = {folder / file: f"{name}/{file}" for file in ("LICENSE", "ThirdPartyNotices.txt")}
    wanted[library] = source["member"]

    def right():
        return hashlib.sha256(library.read_bytes()).hexdigest() == entry["sha256"]

    if all(file.is_file() for file in wanted) and right():
        print(library.name)
        return
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        # Any of the wheels of this version: the library is the same in those for every Python.
        platforms = [f"--platform=manylinux_2_{minor}_{architecture}" for minor in (17, 24, 26, 27, 28)]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary=:all:", "--python-version=3.12", "--implementation=cp", f"--dest={place}", *platforms]
        if subprocess.run([*command, f"{name}=={version}"]).returncode:
            fail(f"pip cannot get {name} {version} for {architecture}")
        with zipfile.ZipFile(next(Path(place).glob("*.whl"))) as wheel:
            for file, member in wanted.items():
                file.write_bytes(wheel.read(member))
    if not right():
        fail(f"{library} is not the file of models/manifest.toml")
    print(library.name)


def changelog(version):
    text = (ROOT / "CHANGELOG.md").read_text()
    for heading in (f"## [{version}]", "## [Unreleased]"):
        if match := re.search(rf"^{re.escape(heading)}[^\n]*\n(.*?)(?=^## |^\[[^]]+\]: |\Z)", text, re.M | re.S):
            print(match[1].strip())
            return
    fail(f"CHANGELOG.md has neither {version} nor what is unreleased")


COMMANDS = {"sbom": sbom, "licences": licence_texts, "runtime": fetch_runtime, "changelog": changelog}

if len(sys.argv) < 3 or sys.argv[1] not in COMMANDS:
    sys.exit(__doc__)
COMMANDS[sys.argv[1]](*sys.argv[2:])
