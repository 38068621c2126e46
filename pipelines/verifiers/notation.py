r"""One way of writing mathematics: typographic variants, shorthand and plain-text forms brought to one LaTeX.

`clean` makes no judgement: it changes how an answer is written and never what it says. All patterns are linear, because answers are hostile.
"""

from __future__ import annotations

import re
import unicodedata

from pipelines.verifiers.decorations import undecorated

FUNCTIONS = ("arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "sin", "cos", "tan", "cot", "sec", "csc", "ln", "log", "exp")
_PLAIN = {"sqrt": r"\sqrt", "pi": r"\pi ", "infinity": r"\infty ", "inf": r"\infty ", "oo": r"\infty ", "theta": r"\theta ", "alpha": r"\alpha "}
_PLAIN |= {name: rf"\{name} " for name in FUNCTIONS} | {"asin": r"\arcsin ", "acos": r"\arccos ", "atan": r"\arctan "}
_PLAIN_WORD = re.compile(r"(?<![\\A-Za-z])(?<!operatorname\{)(" + "|".join(sorted(_PLAIN, key=len, reverse=True)) + r")(?![A-Za-z])")
TEXT = r"\\(?:text(?:normal|rm|bf|it|tt|sf|sc|up|md)?|mathrm|mbox|hbox|emph)"
"""Commands that set words."""
_WRAPPED = re.compile(rf"(?:{TEXT}|\\operatorname)\s*\{{([^{{}}]*)\}}")
_TEXT = re.compile(TEXT + r"\s*\{([^{}]*)\}")
_SPACES = re.compile(r"\\[,!;:> ]|\\left(?![a-z])|\\right(?![a-z])|\\(?:big|Big|bigg|Bigg)[lr]?(?![a-z])|~|\\q?quad(?![a-z])|\s+")
_UNICODE = str.maketrans(
    {"−": "-", "–": "-", "π": r"\pi ", "∞": r"\infty ", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "≥": r"\ge ", "≤": r"\le ", "≠": r"\ne "}
    | {"∈": r"\in ", "°": r"^\circ ", "∪": r"\cup ", "∩": r"\cap ", "∅": r"\emptyset ", "⁄": "/", "±": r"\pm ", "÷": "/", "θ": r"\theta "}
    | {"ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "∉": r"\notin ", "∖": r"\setminus "}
    | {"α": r"\alpha ", "β": r"\beta ", "≈": r"\approx ", "\u200b": "", "\u2060": "", "\ufeff": "", "‘": "'", "’": "'", "。": "."}
)
_SUPERSCRIPTS = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+")
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_ROOT = re.compile(r"√\s*(?:\(([^()]*)\)|(\d+|[A-Za-z]))")
_BARE_ROOT = re.compile(r"\\sqrt\s*(?:(\d)|([A-Za-z]))")
_ROUND_ROOT = re.compile(r"\\sqrt\s*\(([^()]*)\)")
_SHORT_FRACTIONS = (
    (re.compile(r"\\frac\s*(\d)\s*(\d)"), r"\\frac{\1}{\2}"),
    (re.compile(r"\\frac\s*(\d)\s*\{"), r"\\frac{\1}{"),
    (re.compile(r"\\frac(\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\})\s*(\d|[A-Za-z])"), r"\\frac\1{\2}"),
)
_OPERATOR = re.compile(r"\\operatorname\s*\{(a(?=sin|cos|tan))?(sinh?|cosh?|tanh?|ln|log|exp)\}")
_TRIGONOMETRY = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)")
_DEGREES = re.compile(r"(\d+(?:\.\d+)?)\s*\^\s*\{?\s*\\circ\s*\}?")
_BARE_PERCENT = re.compile(r"(?<!\\)%")
_DOUBLED = re.compile(r"\\\\(?=[A-Za-z])")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_BLACKBOARD = re.compile(r"\\mathbb\s*([A-Z])|\\R(?![A-Za-z])")
_WRAPPERS = (("\\(", "\\)"), ("\\[", "\\]"), ("**", "**"), ("`", "`"))


def clean(text: str) -> str:
    """Typographic variants made one: Unicode forms, dollar signs, fraction commands, wrappers such as \\text{...}."""
    if _NUMBER.fullmatch(text):
        return text
    if not text.isascii():
        text = _SUPERSCRIPTS.sub(lambda raised: "^{" + raised[0].translate(_RAISED) + "}", text)
        text = _ROOT.sub(lambda root: rf"\sqrt{{{root[1] or root[2]}}}", text.translate(_UNICODE))
        text = unicodedata.normalize("NFKC", text).translate(_UNICODE)
    text = text.replace("\\$", "").replace("$", "").replace("{,}", ",").replace("{:}", ":").replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    text = text.replace("\\lbrace", "\\{").replace("\\rbrace", "\\}").replace("\\varnothing", "\\emptyset").replace("\\cfrac", "\\frac")
    if "\\" in text:
        text = _BLACKBOARD.sub(lambda name: rf"\mathbb{{{name[1] or 'R'}}}", text)
    if "\\begin" not in text:
        text = _DOUBLED.sub(r"\\", text)  # escaped once too often
    for opening, closing in _WRAPPERS:
        stripped = text.strip()
        if stripped.startswith(opening) and stripped.endswith(closing) and len(stripped) > len(opening) + len(closing):
            text = stripped[len(opening) : -len(closing)]
    text = undecorated(text.strip()) if "\\" in text else text.strip().removeprefix("=").lstrip()
    while (inner := _WRAPPED.fullmatch(text)) is not None:
        text = inner.group(1).strip()
    text = text.removesuffix(".").rstrip() if not text.endswith("..") else text
    if text.count("}") == text.count("{") + 1 and text.endswith("}"):
        text = text[:-1].rstrip()
    return text


def latex(cleaned: str) -> str:
    """Plain-text and shorthand mathematics as whole LaTeX: sqrt(3), sin x, 2*x, x**2, \\sqrt3, \\frac34."""
    text = _OPERATOR.sub(lambda name: rf"\{'arc' if name[1] else ''}{name[2]} ", cleaned.replace("**", "^").replace("\\bmod", "\\mod"))
    if _TRIGONOMETRY.search(text):
        text = _DEGREES.sub(r"\\frac{\1\\pi}{180}", text)
    text = _BARE_PERCENT.sub(r"\\%", text)  # a comment in LaTeX
    text = _PLAIN_WORD.sub(lambda word: _PLAIN[word[1]], text)
    text = re.sub(r"(?<!\^)\*(?!\})", r"\\cdot ", text)
    text = _BARE_ROOT.sub(lambda root: rf"\sqrt{{{root[1] or root[2]}}}", text)
    text = _ROUND_ROOT.sub(r"\\sqrt{\1}", text)
    for pattern, whole in _SHORT_FRACTIONS:
        text = pattern.sub(whole, text)
    return re.sub(r"\^\(([^()]*)\)", r"^{\1}", text)


def without_text(cleaned: str) -> str:
    r"""\text{...} as its content, with spaces round it."""
    return _TEXT.sub(r" \1 ", cleaned) if "\\" in cleaned else cleaned


def squeeze(cleaned: str) -> str:
    """Without any spacing, LaTeX spacing commands and sizing of brackets."""
    return _SPACES.sub("", cleaned)
