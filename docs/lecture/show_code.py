"""Brings the code on the lecture's pages up to date: `make docs`, or `python docs/lecture/show_code.py`.

A page names a place and shows it in the block below, which this program writes:

    <!-- finetune/objective.py diffusion_loss from "noisy_latents =" to "return" -->

The name is a function's, a class's or a method's; without `from` and `to`, which are found in its lines, all of it but
its docstring is shown. `--check` writes nothing, and fails where a page shows something else than the files hold.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
import textwrap
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SHOWN = re.compile(
    r'<!-- (?P<path>[\w/.]+\.py) (?P<name>[\w.]+)(?: from "(?P<first>[^"]+)" to "(?P<last>[^"]+)")? -->\n'
    r"```python\n(?P<code>.*?)```\n",
    re.DOTALL,
)


def find(tree: ast.AST, name: str) -> ast.AST:
    """The definition of a dotted name. Raises LookupError if there is none."""
    for part in name.split("."):
        kinds = (ast.FunctionDef, ast.ClassDef)
        tree = next(
            (node for node in ast.iter_child_nodes(tree) if isinstance(node, kinds) and node.name == part), None
        )
        if tree is None:
            raise LookupError(f"there is no {name}")
    return tree


def without_docstring(node: ast.AST, lines: list[str]) -> list[str]:
    """The lines of a definition, but for its docstring."""
    first = node.body[0]
    if not (isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)):
        return lines[node.lineno - 1 : node.end_lineno]
    return lines[node.lineno - 1 : first.lineno - 1] + lines[first.end_lineno : node.end_lineno]


def code_of(path: str, name: str, first: str | None, last: str | None) -> str:
    """The lines that a page names, as they stand in the file. Raises LookupError if they are not there."""
    source = (ROOT / path).read_text(encoding="utf-8")
    lines = without_docstring(find(ast.parse(source), name), source.split("\n"))
    if first is not None:
        start = next((i for i, line in enumerate(lines) if first in line), None)
        end = None if start is None else next((i for i in range(start, len(lines)) if last in lines[i]), None)
        if end is None:
            raise LookupError(f"{name} has no lines from {first!r} to {last!r}")
        lines = lines[start : end + 1]
    lines = [line for line in lines if line.strip() not in ("# fmt: off", "# fmt: on")]
    lines = [re.sub(r"  +# fmt: skip$", "", line) for line in lines]
    return textwrap.dedent("\n".join(lines)).strip("\n") + "\n"


def brought_up_to_date(page: str) -> str:
    """A page's text with the code that its files hold today. Raises LookupError for a place that is not there."""

    def block(match: re.Match) -> str:
        code = code_of(match["path"], match["name"], match["first"], match["last"])
        return match[0][: match.start("code") - match.start()] + code + "```\n"

    return SHOWN.sub(block, page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, and fail if a page is out of date")
    args = parser.parse_args()
    for path in sorted(HERE.glob("*.md")):
        page = path.read_text(encoding="utf-8")
        try:
            today = brought_up_to_date(page)
        except LookupError as error:
            sys.exit(f"Error: {path.name}: {error.args[0]}. Correct what the page names.")
        if today != page:
            if args.check:
                sys.exit(f"Error: {path.name} shows code of yesterday: run `make docs`.")
            path.write_text(today, encoding="utf-8")
        print(f"{path.name}: {len(SHOWN.findall(page))} places shown")


if __name__ == "__main__":
    main()
