"""Formulas of docstrings as MathML, which browsers draw themselves: the site needs no script."""

import re
import textwrap
from typing import Any

import griffe
from latex2mathml.converter import convert

_BLOCK = re.compile(r"^\.\. math::(.*(?:\n(?:[ \t]+.*|[ \t]*$))*)", re.MULTILINE)
_INLINE = re.compile(r":math:`([^`]+)`")


class Formulas(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = with_formulas(obj.docstring.value)


def with_formulas(text: str) -> str:
    text = _BLOCK.sub(lambda found: f"{block(textwrap.dedent(found[1]))}\n\n", text)
    return _INLINE.sub(lambda found: f"<span>{convert(found[1])}</span>", text)


def block(formula: str) -> str:
    """On lines of its own; those that have an & are aligned there."""
    lines = [line.split("&", 1) for line in re.split(r"\\\\", formula.strip())]
    cells = [[inner(cell) for cell in line] for line in lines]
    rows = "".join(f"<mtr>{''.join(f'<mtd>{one}</mtd>' for one in row)}</mtr>" for row in cells)
    table = f'<mtable displaystyle="true">{rows}</mtable>'
    return f'<div class="formula"><math display="block">{table}</math></div>'


def inner(formula: str) -> str:
    """The MathML of a part, without the element that wraps it."""
    return re.sub(r"^<math[^>]*>|</math>$", "", convert(" ".join(formula.split())))
