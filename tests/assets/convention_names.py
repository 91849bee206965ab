"""Prints the names of attributes and metrics in OpenTelemetry's conventions, as their official package has them; without
those that are deprecated for another reason than that they moved to a repository of their own, as all of GenAI did. A line
each: the kind and the name."""

import re
from pathlib import Path

import opentelemetry.semconv as package

CONSTANT = re.compile(r'^[A-Z0-9_]+: Final = (?:\(\s*)?"([^"]+)"\)?\n(?:"""(.*?)""")?', re.MULTILINE | re.DOTALL)

root = Path(next(iter(package.__path__)))
for kind in ("attributes", "metrics"):
    for directory in (root / kind, root / "_incubating" / kind):
        for file in directory.glob("*.py"):
            for name, text in CONSTANT.findall(file.read_text(encoding="utf-8")):
                said = (text or "").strip().lower()
                if not said.startswith("deprecated") or said.startswith("deprecated: moved to the"):
                    print(kind.removesuffix("s"), name)
