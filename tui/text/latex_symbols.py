"""LaTeX commands and the characters they stand for."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable


def _table(text: str) -> dict[str, str]:
    """Command → character, from alternating words."""
    words = text.split()
    return dict(zip(words[::2], words[1::2], strict=True))


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


ORDINARY = _table("""
    alpha α beta β gamma γ delta δ epsilon ε varepsilon ε zeta ζ eta η theta θ vartheta ϑ iota ι kappa κ lambda λ mu μ
    nu ν xi ξ omicron ο pi π varpi ϖ rho ρ varrho ϱ sigma σ varsigma ς tau τ upsilon υ phi φ varphi ϕ chi χ psi ψ
    omega ω Gamma Γ Delta Δ Theta Θ Lambda Λ Xi Ξ Pi Π Sigma Σ Upsilon Υ Phi Φ Psi Ψ Omega Ω
    infty ∞ partial ∂ nabla ∇ ell ℓ hbar ℏ Re ℜ Im ℑ aleph ℵ emptyset ∅ varnothing ∅ forall ∀ exists ∃ nexists ∄
    neg ¬ lnot ¬ top ⊤ bot ⊥ angle ∠ triangle △ square □ prime ′ degree ° checkmark ✓ imath ı jmath ȷ
    dots … ldots … dotsc … cdots ⋯ dotsb ⋯ vdots ⋮ ddots ⋱ dagger † ddagger ‡ | ‖ Vert ‖ vert | backslash \\
    % % $ $ & & # # _ _
""")

BINARY = _table("""
    times × cdot · div ÷ pm ± mp ∓ ast ∗ star ⋆ circ ∘ bullet • oplus ⊕ ominus ⊖ otimes ⊗ odot ⊙ cap ∩ cup ∪
    sqcap ⊓ sqcup ⊔ uplus ⊎ setminus ∖ wedge ∧ land ∧ vee ∨ lor ∨ bmod mod
""")

RELATIONS = _table("""
    leq ≤ le ≤ leqslant ≤ geq ≥ ge ≥ geqslant ≥ neq ≠ ne ≠ lt < gt > approx ≈ equiv ≡ sim ∼ simeq ≃ cong ≅ propto ∝
    ll ≪ gg ≫ in ∈ notin ∉ ni ∋ subset ⊂ subseteq ⊆ subsetneq ⊊ supset ⊃ supseteq ⊇ to → rightarrow → leftarrow ←
    gets ← leftrightarrow ↔ Rightarrow ⇒ implies ⇒ Leftarrow ⇐ impliedby ⇐ Leftrightarrow ⇔ iff ⇔ mapsto ↦
    longrightarrow ⟶ longleftarrow ⟵ Longrightarrow ⟹ hookrightarrow ↪ uparrow ↑ downarrow ↓ nearrow ↗ searrow ↘
    mid ∣ nmid ∤ parallel ∥ perp ⊥ models ⊨ vdash ⊢ prec ≺ succ ≻ preceq ⪯ succeq ⪰ coloneqq ≔ triangleq ≜ doteq ≐
    asymp ≍ lesssim ≲ gtrsim ≳ therefore ∴ because ∵
""")

OPERATORS = _table("""
    sum ∑ prod ∏ coprod ∐ int ∫ iint ∬ iiint ∭ oint ∮ bigcup ⋃ bigcap ⋂ bigoplus ⨁ bigotimes ⨂ bigvee ⋁ bigwedge ⋀
""")
NAMED = _names("""
    log ln lg exp sin cos tan cot sec csc sinh cosh tanh coth arcsin arccos arctan max min sup inf lim limsup liminf
    det dim ker gcd deg arg hom Pr argmax argmin
""")

OPENING = _table("{ { lbrace { lbrack [ langle ⟨ lfloor ⌊ lceil ⌈ lvert | lVert ‖ lparen (")
CLOSING = _table("} } rbrace } rbrack ] rangle ⟩ rfloor ⌋ rceil ⌉ rvert | rVert ‖ rparen )")

COMMAS = {"colon": ":"}
SPACES = {",": " ", ";": " ", ":": " ", ">": " ", " ": " ", "!": "", "quad": "  ", "qquad": "    ", "enspace": " "}
DROPPED = _names("""
    displaystyle textstyle scriptstyle limits nolimits middle nonumber notag big Big bigg Bigg bigl bigr Bigl Bigr
    biggl biggr Biggl Biggr bigm Bigm
""")
PLAIN_LETTERS = _names("mathrm mathit mathsf mathtt mathnormal operatorname")
TEXTS = _names("text textrm textbf textit texttt textsf mbox")
ACCENTS = _table("""
    hat 0302 widehat 0302 bar 0304 overline 0304 tilde 0303 widetilde 0303 vec 20D7 dot 0307 ddot 0308 check 030C
    breve 0306 acute 0301 grave 0300 underline 0332
""")

SUPERSCRIPTS = {
    **dict(zip("0123456789+−=()", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾", strict=True)),
    **dict(zip("abcdefghijklmnoprstuvwxyz", "ᵃᵇᶜᵈᵉᶠᵍʰⁱʲᵏˡᵐⁿᵒᵖʳˢᵗᵘᵛʷˣʸᶻ", strict=True)),
    **dict(zip("ABDEGHIJKLMNOPRTUVW", "ᴬᴮᴰᴱᴳᴴᴵᴶᴷᴸᴹᴺᴼᴾᴿᵀᵁⱽᵂ", strict=True)),
    **dict(zip("βγδθφχ⊤∘°′″*∗†‡", "ᵝᵞᵟᶿᵠᵡᵀ°°′″**†‡", strict=True)),
}
SUBSCRIPTS = {
    **dict(zip("0123456789+−=()", "₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎", strict=True)),
    **dict(zip("aehijklmnoprstuvxβγρφχ", "ₐₑₕᵢⱼₖₗₘₙₒₚᵣₛₜᵤᵥₓᵦᵧᵨᵩᵪ", strict=True)),
}

_ALPHABETS = {
    **{"mathbb": "DOUBLE-STRUCK", "mathcal": "SCRIPT", "mathscr": "SCRIPT", "mathfrak": "FRAKTUR"},
    **dict.fromkeys(("mathbf", "boldsymbol", "bm", "pmb"), "BOLD"),
}
_FRAKTUR_OF_UNICODE = "BLACK-LETTER"  # its name for the five letters outside the block of mathematical letters


def letters(command: str, text: Iterable[str]) -> str | None:
    """`text` in the alphabet of a command such as mathbb; None if Unicode has no such letter."""
    style = _ALPHABETS[command]
    return None if None in (found := [_letter(style, each) for each in text]) else "".join(filter(None, found))


def has_alphabet(command: str) -> bool:
    """True for a command that `letters` takes."""
    return command in _ALPHABETS


def _letter(style: str, character: str) -> str | None:
    name = unicodedata.name(character, "")
    if not character.isalnum():
        return character if style == "BOLD" else None
    kind = name.replace("LATIN ", "").replace(" LETTER", "").replace("GREEK ", "").replace("DIGIT ", "DIGIT ")
    other = _FRAKTUR_OF_UNICODE if style == "FRAKTUR" else style
    for candidate in (f"MATHEMATICAL {style} {kind}", f"{other} {kind}"):
        try:
            return unicodedata.lookup(candidate)
        except KeyError:
            continue
    return character if style == "BOLD" else None
