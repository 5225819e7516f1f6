"""Runs a notebook's cells one after the other, as Jupyter's kernel does, and prints what they showed as a line of JSON.

python tests/support/wrappers/notebook.py inference.ipynb
"""

from __future__ import annotations

import json
import sys

import nbformat
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

sys.path.insert(0, "")
shell = InteractiveShell.instance()
shown = []
notebook = nbformat.read(sys.argv[1], 4)
nbformat.validate(notebook)
assert notebook.metadata.kernelspec.name == "python3", "the one that every Jupyter has"
for cell in notebook.cells:
    if cell.cell_type == "code":
        with capture_output() as said:
            result = shell.run_cell(cell.source)
        result.raise_error()
        shown += [{"text/plain": said.stdout}, *(output.data for output in said.outputs)]
        if result.result is not None:
            shown.append(shell.display_formatter.format(result.result)[0])
print(json.dumps(shown, default=lambda picture: f"{len(picture)} bytes"))
