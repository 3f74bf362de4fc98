"""Length of files, and words that have no place in a committed file."""

import re

import tree

LIMIT = {".h": 600, ".cc": 600, ".py": 600, ".cuh": 900, ".cu": 900}
SOURCE = (".h", ".cc", ".cu", ".cuh", ".py", ".cmake", "CMakeLists.txt", ".md", ".json", ".sh")
SCRIPTS = ("demo", "test", "scripts/setup", "scripts/compiler", ".ci/run")

# Spelled so that this file passes its own test.
FORBIDDEN = [
    (re.compile(r"\bTO" + r"DO\b(?!\(#\d+\))"), "without an issue number: write it as TO" + "DO(#12)"),
    (re.compile(r"\b(FIX" + r"ME|X" + r"XX|HA" + r"CK)\b"), "unfinished work belongs in an issue"),
    (re.compile(r"(?<![\w.])/(ho" + r"me|wo" + r"rk|ro" + r"ot|Use" + r"rs)/"), "a path of one machine"),
    (re.compile(r"(?<![\w.])/tm" + r"p/bu" + r"ild"), "a path of one machine"),
    (re.compile(r"\bnot (yet )?imple" + r"mented\b", re.I), "say what is supported instead"),
    (re.compile(r"^(<{7}|>{7}|={7})( |$)"), "a merge conflict"),
]

problems = []
checked = 0
for path in tree.files():
    name = path.rsplit("/", 1)[-1]
    if not (path.endswith(SOURCE) or path in SCRIPTS):
        continue
    checked += 1
    text = tree.lines(path)
    for suffix, limit in LIMIT.items():
        if path.endswith(suffix) and len(text) - 1 > limit:
            problems.append(f"{path}: {len(text) - 1} lines, the limit is {limit}: split it by meaning")
    for number, line in text:
        for pattern, why in FORBIDDEN:
            if m := pattern.search(line):
                problems.append(f"{path}:{number}: '{m.group(0)}': {why}")
        if path.endswith((".h", ".cc", ".cu", ".cuh", ".py")) and line != line.rstrip():
            problems.append(f"{path}:{number}: space at the end of the line")

tree.finish("text", checked, problems)
