"""What counts as the content of a problem, by hand."""

import pytest

from pipelines.curation.content import Against, content


def tokens(text: str) -> list[str]:
    return sorted(token for token, _ in content(text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1,200 and 1{,}200 and 1200", ["1200"] * 3),
        ("twenty-six, twenty six and 26", ["26"] * 3),
        ("two hundred and fourteen points, three thousand five", ["214", "3005"]),
        ("2 thousand, 1.5 million", ["1500000", "2000"]),
        (r"\frac{3}{4}, \frac34, \dfrac3{4}, 3/4, (3)/(4), 0.75, 75%, 75\%, 75 percent, three quarters, three-fourths", ["3/4"] * 11),
        ("half of it, one half, 50%", ["1/2"] * 3),
        ("one and two and three hundred", ["1", "2", "300"]),
        ("thirty and five", ["30", "5"]),
        ("1/0 of it", ["1"]),
        ("$x = -3$, is -3, but 5-3 and a 30-minute half-hour", ["-3", "-3", "-", "1/2", "3", "30", "5", "=", "x"]),
        (r"$-\frac12$ and $-x$", ["-", "-1/2", "x"]),
        ("x-1, x - 1, $y$-axis, well-known", ["-", "-", "1", "1", "x", "x", "y"]),
        (br"$xy \le 2$, $x \geq 1$, x \u2264 1".decode("unicode_escape").replace(r"\g", r"\g"), ["1", "1", "2", "<", "<", ">", "x", "x", "x", "y"]),
        (r"$\sin A = \cos \theta$, \u221a2, sin x".replace(r"\u221a", "\u221a"), ["2", "=", "a", "cos", "sin", "sin", "sqrt", "theta", "x"]),
        (r"triangle ABC, $\triangle DBC$", ["a", "b", "b", "c", "c", "d", "triangle"]),
        ("She pays $5 and her sister pays $7 for it", ["5", "7"]),
        (r"$\text{mod}_5(n)$, \begin{cases} 1 \end{cases}", ["1", "5", "n"]),
        ("[asy] draw((0,0)--(9,9)); [/asy] A dog I saw. [asy] never closed 77", []),
    ],
)  # fmt: skip
def test_tokens(text: str, expected: list[str]) -> None:
    assert tokens(text) == sorted(expected)


def test_weights_by_form_and_the_heaviest_occurrence_first() -> None:
    assert content("two pens, 2 cups, twice two") == {("2", 0): 1.0, ("2", 1): 0.5, ("2", 2): 0.5, ("2", 3): 0.0}
    assert content("one half, one third, one, two thirds") == {("1/2", 0): 0.0, ("1/3", 0): 0.0, ("1", 0): 0.0, ("2/3", 0): 0.5}


def test_share_and_excess_by_hand() -> None:
    items = Against(["2 pens, 3 cups", "$x + 2$", "no number", "two or three 7"])
    share, excess = items.compare(content("2 pens and 4 cups"))
    assert share.tolist() == [1 / 2, 1 / 3, 0.0, 1 / 3]
    assert excess.tolist() == [1.0, 1.0, 0.0, 1.0]  # 4 and 3; 4 and {x, +}; nothing on one side; {4} and {1/2 + 1}
    share, excess = items.compare(content("nothing"))
    assert share.tolist() == [0.0, 0.0, 1.0, 0.0] and excess.tolist() == [0.0] * 4
    share, excess = items.compare(content("3 cups"))
    assert share.tolist()[0] == 1 / 2 and excess.tolist()[0] == 0.0
    share, excess = items.compare(content("two cups, three pens"))
    assert share.tolist()[0] == 1.0 and excess.tolist()[0] == 0.0
    assert share.tolist()[3] == 2 / 3 and excess.tolist()[3] == 0.0
    assert Against([]).compare(content("3"))[0].shape == (0,)
