"""Each lint on a small tree that breaks each of its rules once, and on one that breaks none."""

import os
import pathlib
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).parent
GUARD = "#pragma once\n"

# lint, files, words of the expected problem
BROKEN = [
    ("includes", {"src/base/a.h": GUARD + '#include "formats/b.h"\n'}, "may include only base"),
    ("includes", {"src/text/a.h": GUARD + '#include "model/b.h"\n'}, "may include only base, text"),
    ("includes", {"src/model/a.cc": '#include "cache/c.h"\n'}, "may include only"),
    ("includes", {"src/model/a.cc": '#include "backends/reference/c.h"\n'}, "may include only"),
    ("includes", {"src/backends/cuda/a.cc": '#include "backends/cpu/c.h"\n'}, "itself and reference"),
    ("includes", {"apps/a.cc": '#include "backends/reference/c.h"\n'}, "may include only"),
    ("includes", {"src/base/a.cc": '#include "a.h"\n'}, 'write it as "base/a.h"'),
    ("includes", {"src/base/a.cc": '#include "../formats/a.h"\n'}, "from the folder's root"),
    ("includes", {"src/base/a.cc": "#include <dsv4/status.h>\n"}, "with quotes"),
    ("includes", {"src/base/a.h": "int x();\n"}, "without #pragma once"),
    ("includes", {"src/strange/a.cc": "\n"}, "not in the table"),
    ("includes", {"include/dsv4/a.h": GUARD + '#include "base/str.h"\n'}, "public headers"),
    ("includes", {"include/dsv4/a.h": GUARD + "#include <nlohmann/json.hpp>\n"}, "public headers"),
    ("text", {"src/base/a.cc": "\n" * 601}, "the limit is 600"),
    ("text", {"src/base/a.cc": "// TO" + "DO: later\n"}, "without an issue"),
    ("text", {"src/base/a.cc": "// FIX" + "ME\n"}, "belongs in an issue"),
    ("text", {"docs/a.md": "see /ho" + "me/me/x\n"}, "one machine"),
    ("text", {"src/base/a.cc": "// not imple" + "mented\n"}, "supported"),
    ("text", {"src/base/a.cc": "int x; \n"}, "space at the end"),
    ("docs", {"README.md": "see `src/base/a.h`\n"}, "does not exist"),
    ("docs", {"docs/A.md": "see `base/a.h`\n"}, "does not exist"),
    ("docs", {"README.md": "run `dsv4 fly -m DIR`\n"}, "no subcommand"),
    ("docs", {"docs/WALK.md": "- `src/base/a.h`: `gone`\n", "src/base/a.h": "int here();\n"}, "has no `gone`"),
]

CLEAN = {
    "README.md": "see `src/base/a.h`, `base/a.h`, `build/release/dsv4`; run `dsv4 fly -m DIR`\n",
    "apps/fly.cc": '#include "command.h"\n#include "model/config.h"\n',
    "docs/WALK.md": "1. `base/a.h`: `here`, `Here::there()`\n",
    "include/dsv4/a.h": GUARD + '#include <string_view>\n#include <stdint.h>\n#include "dsv4/b.h"\n',
    "src/base/a.h": GUARD + "#include <string>\nint here(); // TO" + "DO(#7)\nint there();\n",
    "src/backends/cpu/a.cc": '#include "backends/reference/c.h"\n',
    "src/backends/cpu/a-inl.h": "#if 1\n#endif\n",
    "src/api/a.cc": '#include "backends/reference/c.h"\n',
    "src/engine/a.cc": '#include "cache/c.h"\n#include "engine/c.h"\n',
}


def run(lint, tree):
    with tempfile.TemporaryDirectory() as root:
        for path, text in tree.items():
            file = pathlib.Path(root, path)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        env = dict(os.environ, DSV4_LINT_ROOT=root, GIT_CEILING_DIRECTORIES=str(pathlib.Path(root).parent))
        return subprocess.run([sys.executable, "-B", str(HERE / f"{lint}.py")], env=env,
                              capture_output=True, text=True, check=False)


wrong = 0
for lint, tree, words in BROKEN:
    result = run(lint, tree)
    if result.returncode != 1 or words not in result.stdout:
        wrong += 1
        print(f"{lint} did not say '{words}' about {tree}:\n{result.stdout}{result.stderr}")
for lint in ("includes", "text", "docs"):
    result = run(lint, CLEAN)
    if result.returncode != 0:
        wrong += 1
        print(f"{lint} found something in a clean tree:\n{result.stdout}{result.stderr}")
print(f"selftest: {len(BROKEN) + 3} checked, {wrong} wrong")
sys.exit(1 if wrong else 0)
