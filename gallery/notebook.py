"""Write digits.ipynb from digits.py, whose cells begin with ``# %%`` (the percent format).

python gallery/notebook.py
"""

import re
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

HERE = Path(__file__).resolve().parent


def notebook_of(script: str) -> str:
    """The notebook of a script, as text; the same script gives the same text."""
    cells = []
    for number, (kind, body) in enumerate(re.findall(r"^# %%(.*)\n((?:(?!# %%).*\n?)*)", script, flags=re.MULTILINE)):
        text = body.strip("\n")
        if "[markdown]" in kind:
            cell = new_markdown_cell(re.sub(r"^# ?", "", text, flags=re.MULTILINE))
        else:
            cell = new_code_cell(text)
        cell["id"] = f"cell-{number}"
        cells.append(cell)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook = new_notebook(cells=cells, metadata={"kernelspec": kernel})
    nbformat.validate(notebook)
    return nbformat.writes(notebook, indent=1) + "\n"


if __name__ == "__main__":
    (HERE / "digits.ipynb").write_text(notebook_of((HERE / "digits.py").read_text(encoding="utf-8")), encoding="utf-8")
