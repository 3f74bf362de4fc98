"""The files the lints look at: tracked ones and new ones that git does not ignore."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(os.environ.get("DSV4_LINT_ROOT") or pathlib.Path(__file__).resolve().parents[2])


def files(*suffixes):
    """Paths relative to the root, as strings with '/', sorted."""
    try:
        out = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\n")
    except (OSError, subprocess.CalledProcessError):  # a source archive without git
        skip = {"build", ".git", ".venv", ".cache"}
        out = [p.relative_to(ROOT).as_posix() for p in ROOT.rglob("*")
               if p.is_file() and not skip & set(p.relative_to(ROOT).parts)]
    return sorted(f for f in set(out)
                  if f and (not suffixes or f.endswith(suffixes)) and (ROOT / f).is_file())


def lines(path):
    """(number, text) of each line; nothing for a binary file."""
    try:
        text = (ROOT / path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return []
    return list(enumerate(text.split("\n"), 1))


def finish(what, checked, problems):
    for p in problems:
        print(p)
    print(f"{what}: {checked} checked, {len(problems)} problems")
    sys.exit(1 if problems else 0)
