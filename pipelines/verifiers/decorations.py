r"""LaTeX that changes how an answer looks and not what it says: fonts, sizes, colours, frames, spaces, tags. `undecorated` takes it away.

What prints nothing (\phantom{5}) or strikes out (\cancel{5}) says nothing: the first goes, the second stays and is no number. All patterns are
linear, because answers are hostile.
"""

from __future__ import annotations

import re

_INSIDE = r"\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\}"
_ARGUMENT = r"\s*\{[^{}]*\}"
_SILENT = re.compile(
    rf"\\(?:[hv]?phantom|hspace\*?|vspace\*?|tag\*?|label|color|fontsize|pagecolor){_ARGUMENT}"
    r"|\\(?:display|text|script|scriptscript)style(?![A-Za-z])|\\(?:mathstrut|strut|nonumber|notag|null|limits|nolimits|noindent|newline|centering)(?![A-Za-z])"
    r"|\\(?:tiny|scriptsize|footnotesize|small|normalsize|large|Large|LARGE|huge|Huge|bfseries|itshape|boldmath|bf|it|sf|tt)(?![A-Za-z])"
    r"|\A(?:\s|\\[,;:! ])*(?:\\therefore(?![A-Za-z])|=(?!=))"
)
_ROMAN = re.compile(r"\{\s*\\rm(?![A-Za-z])\s*([^{}]*)\}|\\rm(?![A-Za-z])\s*([A-Za-z0-9]+)")
_FONT = re.compile(
    rf"\\(?:underline|boldsymbol|bm|pmb|mathbf|mathit|mathsf|mathtt|mathnormal|ensuremath|boxed|fbox|mathopen|mathclose|mathord|mathstrut)\s*{_INSIDE}"
    rf"|\\(?:textcolor|colorbox|fcolorbox\s*\{{[^{{}}]*\}}){_ARGUMENT}\s*{_INSIDE}"
)
_LETTER = re.compile(r"\\mathrm\s*\{\s*(e|i|[\d.]+)\s*\}")
_FUNCTION = re.compile(r"\\(?:mathrm|text|operatorname)\s*\{\s*(ln|log|exp|sin|cos|tan|cot|sec|csc|max|min|gcd)\s*\}")
_DEGREE = re.compile(r"\\degree(?![A-Za-z])|\^(?:\s*\{)?\s*\\(?:text|mathrm)\s*\{\s*o\s*\}\s*\}?|(?<=\d)\s*\\deg(?![A-Za-z])")
_BEFORE_WORDS = re.compile(r"(?:\\[,;:! ]|~|\s)+(\\(?:text|mathrm|mbox|hbox)[a-z]*\s*\{)?")
_GROUP = re.compile(rf"{_INSIDE}")
_INFIX = re.compile(r",|\\(?:over|choose|atop|brace|brack)(?![A-Za-z])")
_ENVIRONMENT = re.compile(
    r"\\begin\{(aligned|align\*?|gathered|equation\*?|split|displaymath|math|center)\}((?:(?!\\\\|&|\\begin).)*)\\end\{\1\}", re.DOTALL
)
_COMMAND = re.compile(r"\\[A-Za-z]+")
_PLAIN = frozenset(
    re.findall(
        r"\\[a-z]+",
        r"\frac \sqrt \cdot \times \left \right \pi \infty \cup \cap \in \le \ge \leq \geq \lt \gt \ne \neq \pm \mp \begin \end \sin \cos \tan "
        r"\ln \log \theta \alpha \beta \mathbb \mid \setminus \ldots \dots \overline \bar \circ \emptyset \sum \prod \int \binom \to \approx \equiv",
    )
)
"""Commands that decorate nothing: a text with no other is left alone."""
MOST_LAYERS = 6


def undecorated(text: str) -> str:
    """`text` without what only decorates it."""
    if _PLAIN.issuperset(_COMMAND.findall(text)) and text[:1] not in "={" and text[-1:] != "\\" and "{aligned" not in text:
        return text
    text = _ROMAN.sub(lambda found: rf"\mathrm{{{found[1] or found[2] or ''}}}", text)
    text = _SILENT.sub(" ", text)
    if (whole := _ENVIRONMENT.fullmatch(text.strip())) is not None:
        text = whole[2]
    for _ in range(MOST_LAYERS):
        bare = _FONT.sub(_inside, text)
        if bare == text:
            break
        text = bare
    text = _DEGREE.sub(r"^\\circ", _FUNCTION.sub(r"\\\1 ", _LETTER.sub(_inside, text)))
    text = _BEFORE_WORDS.sub(lambda found: f" {found[1]}" if found[1] else found[0], text).rstrip("\\ \t\n").lstrip()
    while (group := _GROUP.fullmatch(text)) is not None and not _INFIX.search(group[1]):
        text = group[1].strip()
    return text


def _inside(found: re.Match[str]) -> str:
    """What a command dresses, set apart where it would run into what stands before it."""
    content = next(group for group in found.groups() if group is not None)
    before = found.string[found.start() - 1 : found.start()]
    return f"{{{content}}}" if before in ("^", "_") and before else f" {content}" if before.isalpha() else content
