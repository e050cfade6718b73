from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macllm_tui.text.latex import to_unicode
from macllm_tui.text.markdown import parse
from macllm_tui.text.splitter import BlockSplitter
from macllm_tui.widgets.layout import numbered_lines
from macllm_tui.widgets.stream_markdown import StreamMarkdown
from tests.tui.test_splitter import DOCUMENTS


@pytest.mark.parametrize(
    ("formula", "text"),
    [
        ("a^2", "a²"),
        ("a^2+b^2=c^2", "a² + b² = c²"),
        (r"x_i^{2n}", "xᵢ²ⁿ"),
        ("x^2_i", "xᵢ²"),
        (r"x_{i,j}", "x_(i,j)"),
        ("W_QK^T", "W_Q Kᵀ"),
        ("W_Q x", "W_Q x"),
        (r"d_{\text{model}}", "d_model"),
        (r"e^{-x^2/2}", "e^(−x²/2)"),
        (r"\alpha\beta \cdot \Omega", "αβ · Ω"),
        (r"-5 \le -x < |-x|", "−5 ≤ −x < |−x|"),
        (r"\frac{a}{b}", "a/b"),
        (r"\frac12", "1/2"),
        (r"\frac{a+b}{2c}", "(a + b)/(2c)"),
        (r"\frac{1}{2}x", "1/2 x"),
        (r"\left(\frac{a}{b}\right)^2", "(a/b)²"),
        (r"\frac{a}{b}^2", "(a/b)²"),
        (r"{\frac{a}{b}}^2", "(a/b)²"),
        (r"\frac{QK^\top}{\sqrt{d_k}}V", "QKᵀ/√dₖ V"),
        (r"\sqrt{b^2-4ac}", "√(b² − 4ac)"),
        (r"\sqrt[3]{x}", "∛x"),
        (r"\sqrt[n]{xy}", "ⁿ√(xy)"),
        (r"\sum_{i=1}^{n} x_i", "∑ᵢ₌₁ⁿ xᵢ"),
        (r"\sum\limits_{i=1}^n i", "∑ᵢ₌₁ⁿ i"),
        (r"\int_0^1 f(x)\,dx", "∫₀¹ f(x) dx"),
        (r"\lim_{x\to 0} f", "lim_(x→0) f"),
        (r"O(n\log n)", "O(n log n)"),
        (r"2\sin\theta", "2 sin θ"),
        (r"\operatorname*{argmax}_x f(x)", "argmaxₓ f(x)"),
        (r"\mathbb{R}^n \ni \mathbf{x}", "ℝⁿ ∋ 𝐱"),
        (r"\mathcal{N}(0,\sigma^2)", "𝒩(0, σ²)"),
        (r"\mathcal{LB}\mathfrak{gC}", "ℒℬ𝔤ℭ"),
        (r"\hat{y}_i - \bar x", "ŷᵢ − x̄"),
        (r"\|x\|_2", "‖x‖₂"),
        (r"x \not= y \not\in Z", "x ≠ y ∉ Z"),
        (r"f\colon A\to B", "f: A → B"),
        ("f''(x)", "f″(x)"),
        (r"90^\circ = 50\%", "90° = 50%"),
        (r"2^{10}=1{,}024", "2¹⁰ = 1,024"),
        (r"x \text{ if } y>0", "x if y > 0"),
        (r"a \equiv b \pmod{n}", "a ≡ b (mod n)"),
        (r"\binom{n}{k}", "(n choose k)"),
        (r"\underset{x}{\max} f", "maxₓ f"),
        (r"\boxed{42}", "42"),
        (r"\begin{aligned}a&=b+c\\&=d\end{aligned}", "a = b + c\n= d"),
        (r"\begin{pmatrix}1&2\\3&4\\\end{pmatrix}", "(1 2; 3 4)"),
        (r"\begin{cases}x&\text{if }x>0\\0&\text{otherwise}\end{cases}", "{ x, if x > 0; 0, otherwise"),
    ],
)
def test_a_formula_is_shown_as_text(formula: str, text: str) -> None:
    assert to_unicode(formula) == text


@pytest.mark.parametrize(
    "formula",
    [
        "",
        " ",
        r"\foo",
        r"a + \foo{b}",
        "x^{",
        "x^",
        "x_1_2",
        "}",
        "{" * 50 + "x" + "}" * 50,
        r"\frac{a}",
        r"\begin{tikzpicture}a\end{tikzpicture}",
        r"\begin{aligned}a",
        r"\end{aligned}",
        r"\widehat{xy}",
        r"\mathbb{+}",
        r"\text{a \foo}",
        "a & b",
        r"\left",
        "\\",
        "x" * 3000,
    ],
)
def test_a_formula_with_an_unknown_piece_is_not_converted(formula: str) -> None:
    assert to_unicode(formula) is None


PIECES = [*"ab1^_{}\\ &+-'|[]().", r"\frac", r"\left", r"\begin{cases}", r"\end{cases}", r"\hat", r"\text{", r"\sqrt["]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=30).map("".join))
def test_no_text_breaks_the_conversion(formula: str) -> None:
    text = to_unicode(formula)
    assert text is None or text.strip()


def drawn(source: str, width: int = 60) -> list[str]:
    return [line.plain.rstrip() for line in numbered_lines(parse(source), width)]


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        (r"a \(a^2\) b $x_1$, **\[y\]** $$z^2$$", ["a a² b x₁, y z²"]),
        ("# On $x^2$", ["On x²"]),
        (
            "- one \\(x_1\\)\n  - two $x_2$\n    - three $x_3$\n- end",
            ["• one x₁", "  ◦ two x₂", "    ▪ three x₃", "• end"],
        ),
        ("- a\n  \\[\n  b\n  + c\n  \\]\n- d", ["• a", "", "    b + c", "• d"]),
        ("| $a^2$ | b |\n|---|---:|\n| \\(\\alpha\\) | $x^2$ |", ["a²   b", "──────", "α   x²"]),
        ("Then\n\\[\nx =\n- \\frac{a}{b}.\n\\]\nso", ["Then", "", "  x = −a/b.", "", "so"]),
        ("$$\nx\n=\ny\n$$.", ["  x = y."]),
        ("> $$ x^2 $$", ["▌   x²"]),
        (r"`\(a^2\)` and ``$a^2$``", [r"\(a^2\) and $a^2$"]),
        ("```\n$a^2$ \\(b\\)\n```", ["1".rjust(58), "  $a^2$ \\(b\\)", ""]),
        ("    $a^2$ \\(b\\)", ["1".rjust(58), "  $a^2$ \\(b\\)", ""]),
        (r"\(\foo{x} * y\) and \(a*b*c\)", [r"\(\foo{x} * y\) and a * b * c"]),
        ("\\[\n\\foo\n\\]", ["  \\[", "  \\foo", "  \\]"]),
        ("It costs $5 and $10, or US$7, $1-$2.", ["It costs $5 and $10, or US$7, $1-$2."]),
        ("between $5, for one, and 10$ for two", ["between $5, for one, and 10$ for two"]),
        ("PATH=$HOME/bin:$PATH and a $$ b", ["PATH=$HOME/bin:$PATH and a $$ b"]),
        (r"\$5 \* \[not a link](x) f\(x) \(see below\)", ["$5 * [not a link](x) f(x) (see below)"]),
        ("\\[ ] open\n\n1\\) one", ["[ ] open", "", "1) one"]),
        (r"\\(x\\)", [r"\(x\)"]),
        (r"unfinished \(a_1 * f(b) * c", [r"unfinished \(a_1 * f(b) * c"]),
        ("unfinished $a_1 +", ["unfinished $a_1 +"]),
        ("\\[\nx +\n- y", ["  \\[", "  x +", "  - y"]),
        ("\\(a\n\nb\\)", ["\\(a", "", "b)"]),
    ],
)
def test_formulas_in_markdown(source: str, lines: list[str]) -> None:
    assert drawn(source) == lines


FORMULAS = st.sampled_from(
    [
        r"\(a^2\)",
        "$x_1$",
        "\\[\nx\n+ y\n= z\n\\]",
        "$$\na_1\n- b\n$$",
        "- $a$\n- \\[ b \\]",
        r"\(\foo\)",
        "$5 and $6",
        r"\(a",
    ]
)
FORMULA_DOCUMENTS = st.lists(st.one_of(FORMULAS, DOCUMENTS), max_size=5).map("\n".join)
FORMULA_NOISE = st.text("ab\\()[]$ \n^_{1-+|`", max_size=60)


@settings(max_examples=60, deadline=None)
@given(st.one_of(FORMULA_DOCUMENTS, FORMULA_NOISE), st.lists(st.integers(1, 9), max_size=20))
def test_a_streamed_document_with_formulas_is_drawn_like_the_whole(source: str, cuts: list[int]) -> None:
    widget, splitter, position, blocks = StreamMarkdown(), BlockSplitter(), 0, list[str]()
    for length in [*cuts, len(source)]:
        piece = source[position : position + length]
        widget.write(piece)
        widget.lines(30)
        blocks += splitter.feed(piece)
        position += length
    assert "".join(blocks) + splitter.tail == source
    widget.finish()
    assert widget.source == source
    assert [line.plain.rstrip() for line in widget.lines(30)] == drawn(source, 30)


def test_a_displayed_formula_is_one_block_while_it_streams() -> None:
    widget = StreamMarkdown()
    for piece in ("So:\n\n\\[\nx = a\n", "+ b\n", "- c\n"):
        widget.write(piece)
        assert [line.plain for line in widget.lines(40)][2] == "  \\["
    widget.write("\\]\n\nEnd")
    assert [line.plain for line in widget.lines(40)] == ["So:", "", "  x = a + b − c", "", "End"]
