"""Documents that name code are held to it.

- Every `path/file.ext` in README.md, CONTRIBUTING.md and docs/ exists. Paths may be written from the
  root or from src/; `<name>` and `*` mark placeholders; build/ and ../shared/ are not checked.
- In docs/WALK.md a line of the form "- `file`: `symbol`, `symbol` ..." names symbols that the
  file has as whole words.
- Subcommands named as `dsv4 xyz` exist in apps/.
"""

import re

import tree

CODE = re.compile(r"`([^`\n]+)`")
PATH = re.compile(r"\.?[\w.-]+(/[\w.-]+)+\.(h|cc|cu|cuh|py|md|txt|cmake|json|sh)")
WALK = re.compile(r"[-*\d.]+\s+`([\w./-]+)`:\s*(.*)")
OUTSIDE = ("build/", "../", "DIR/", "model/", "MODEL/")

problems = []
checked = 0
apps = {p.split("/")[1][:-3] for p in tree.files(".cc") if p.startswith("apps/")}


def exists(path):
    return (tree.ROOT / path).exists() or (tree.ROOT / "src" / path).exists()


for doc in tree.files(".md"):
    if doc.count("/") and not doc.startswith("docs/"):
        continue
    fenced = False
    for number, line in tree.lines(doc):
        if line.startswith("```"):
            fenced = not fenced
            continue
        if fenced:
            continue
        for code in CODE.findall(line):
            for word in code.split():
                if PATH.fullmatch(word) and not (doc == "docs/WALK.md" and WALK.match(line)) and not word.startswith(OUTSIDE):
                    checked += 1
                    if not exists(word):
                        problems.append(f"{doc}:{number}: `{word}` does not exist")
            m = re.match(r"(?:\S*/)?dsv4 ([a-z]+)\b", code)
            if m and m.group(1) not in apps:
                problems.append(f"{doc}:{number}: `dsv4 {m.group(1)}` is no subcommand in apps/")
        m = WALK.match(line.strip())
        if doc == "docs/WALK.md" and m:
            path, rest = m.groups()
            file = next((f for f in (path, "src/" + path) if (tree.ROOT / f).is_file()), None)
            if not file:
                problems.append(f"{doc}:{number}: `{path}` does not exist")
                continue
            text = (tree.ROOT / file).read_text(encoding="utf-8")
            for symbol in CODE.findall(rest):
                name = symbol.split("(")[0].split("::")[-1].split(".")[-1]
                checked += 1
                if not re.search(rf"\b{re.escape(name)}\b", text):
                    problems.append(f"{doc}:{number}: {file} has no `{symbol}`")

tree.finish("docs", checked, problems)
