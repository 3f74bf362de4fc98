"""Who may include whom: arrows point one way.

Include roots make most of this a compile error already. This reads the same rule from the text, so
that files without a target (apps, tests, bench) and public headers are held to it too.
"""

import re

import tree

# Folder of src/ -> folders it may include besides itself and the public headers.
ALLOWED = {
    "base": set(),
    "formats": {"base"},
    "checkpoint": {"formats", "base"},
    "text": {"base"},
    "ops": {"formats", "base"},
    "backends": {"ops", "formats", "base"},
    "model": {"ops", "formats", "checkpoint", "base"},
    "convert": {"model", "checkpoint", "formats", "base"},
    "convert": {"model", "ops", "checkpoint", "formats", "base"},
    "cache": {"ops", "formats", "base"},
    "engine": {"model", "cache", "ops", "checkpoint", "formats", "base"},
    # The one folder that names concrete backends.
    "api": {"engine", "model", "cache", "backends", "ops", "checkpoint", "formats", "base"},
    "eval": {"api", "engine", "model", "cache", "ops", "checkpoint", "formats", "text", "base"},
    "server": {"api", "engine", "model", "cache", "ops", "checkpoint", "formats", "text", "base"},
}
APPS = set(ALLOWED) - {"backends"}
INCLUDE = re.compile(r'\s*#\s*include\s*([<"])([^>"]+)[>"]')
STANDARD = re.compile(r"[a-z_0-9]+|std(int|def|bool)\.h")


def allowed_for(path):
    parts = path.split("/")
    if parts[0] == "src":
        return ALLOWED.get(parts[1], set()) | {parts[1]}
    if parts[0] in ("apps", "tools", "bench"):
        return APPS
    return set(ALLOWED)  # tests may look everywhere


problems = []
checked = 0
for path in tree.files(".h", ".cc", ".cu", ".cuh"):
    checked += 1
    public = path.startswith("include/dsv4/")
    folder = path.split("/")[1] if path.startswith("src/") else ""
    if folder and folder not in ALLOWED:
        problems.append(f"{path}: src/{folder} is not in the table of tests/lint/includes.py")
        continue
    allowed = allowed_for(path)
    text = tree.lines(path)
    # Highway's "-inl.h" files are meant to be included more than once.
    if path.endswith((".h", ".cuh")) and not path.endswith("-inl.h") and not any(
            re.match(r"#pragma once$|#ifndef \w+_H_$", t) for _, t in text):
        problems.append(f"{path}: a header without #pragma once")
    for number, line in text:
        m = INCLUDE.match(line)
        if not m:
            continue
        bracket, name = m.groups()
        where = f"{path}:{number}: includes {bracket}{name}"
        if public:
            if not (name.startswith("dsv4/") if bracket == '"' else STANDARD.fullmatch(name)):
                problems.append(f"{where}: public headers include each other and the standard library only")
            continue
        if name.startswith(".") or "/../" in name:
            problems.append(f"{where}: write the path from the folder's root")
        if bracket == "<":
            if name.startswith("dsv4/"):
                problems.append(f"{where}: our own headers are included with quotes")
            continue
        target = name.split("/")[0]
        if target in ALLOWED and target not in allowed:
            problems.append(f"{where}: {path.rsplit('/', 1)[0]} may include only {', '.join(sorted(allowed))}")
        if path.startswith("src/") and "/" not in name:
            problems.append(f"{where}: write it as \"{'/'.join(path.split('/')[1:-1])}/{name}\"")
        if path.startswith("src/backends/") and name.startswith("backends/"):
            mine = path.split("/")[2]
            if name.split("/")[1] not in (mine, "reference"):
                problems.append(f"{where}: a backend sees itself and reference")

tree.finish("includes", checked, problems)
