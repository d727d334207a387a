r"""One way of writing for answers: LaTeX, plain text and Unicode to a small LaTeX without layout. Pure strings.

    "$\dfrac{5\pi}2$." -> "\frac{5\pi}{2}"      "3½ cm²" -> "3\frac{1}{2}", square centimetres      "1,234" -> "1234"

Dataflow: text of an answer -> ``read_answer`` -> ``Answer`` -> ``equality``.
Invariants: linear in the text's length but for a few passes over a bounded text; nothing is evaluated; the same
function reads gold and given answers, so two equal texts are always equal answers.
Not here: what an expression is worth, and which ones are too costly to ask (``limits``).
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from rlinf_vlm.rewards.extraction import COMMANDS, matching_braces
from rlinf_vlm.rewards.units import DEGREE, Unit, split_unit

MAX_LENGTH = 2000
"""Characters of an answer that are read; a longer one is compared as it stands."""

_SYMBOLS = {
    "π": r"\pi ", "𝜋": r"\pi ", "∞": r"\infty ", "°": r"^\circ ", "º": r"^\circ ", "˚": r"^\circ ", "−": "-", "–": "-",  # noqa: RUF001
    "—": "-", "‐": "-", "‑": "-", "﹣": "-", "×": r"\times ", "✕": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ",  # noqa: RUF001
    "∙": r"\cdot ", "•": r"\cdot ", "÷": "/", "∕": "/", "⁄": "/", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ",  # noqa: RUF001
    "≈": r"\approx ", "≅": r"\cong ", "±": r"\pm ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∠": r"\angle ",  # noqa: RUF001
    "△": r"\triangle ", "∅": r"\emptyset ", "∥": r"\parallel ", "⊥": r"\perp ", "θ": r"\theta ", "α": r"\alpha ",  # noqa: RUF001
    "β": r"\beta ", "γ": r"\gamma ", "φ": r"\phi ", "ϕ": r"\phi ", "λ": r"\lambda ", "′": "'", "’": "'", "″": '"',  # noqa: RUF001
    "€": "", "£": "", "¥": "", "\u200b": "", "\ufeff": "", "\u2061": "", "∛": r"\sqrt[3]",
}  # fmt: skip
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ", "0123456789-+n")
_TEXTS = re.compile(
    r"\\(?:textbf|textit|textrm|textnormal|textsf|texttt|mathrm|mathbf|mathit|mathsf|mathtt|mbox|hbox|operatorname\*?|emph|"
    r"underline|mathbb|boldsymbol|bm|text)(?![A-Za-z])\s*"
)
_LAYOUT = re.compile(
    r"\\(?:left|right|bigl|bigr|Bigl|Bigr|big|Big|bigg|Bigg|displaystyle|textstyle|limits|mathstrut|strut|hfill|"
    r"phantom\{[^{}]*\})(?![A-Za-z])\.?"
)
_SPACES = re.compile(
    r"\\[,;:!> ]|\\(?:quad|qquad|enspace|thinspace|space|hspace\{[^{}]*\})(?![A-Za-z])|~|\\\\(?![A-Za-z])"
)
_RENAMED = {
    "dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "sfrac": "frac", "nicefrac": "frac",
    "textdegree": "^\\circ", "leq": "le", "leqslant": "le", "geq": "ge", "geqslant": "ge",
    "neq": "ne", "lt": "<", "gt": ">", "infin": "infty", "degree": "^\\circ", "degrees": "^\\circ", "deg": "^\\circ",
    "bar": "overline", "widebar": "overline", "dots": "ldots", "cdots": "ldots", "varnothing": "emptyset",
    "simeq": "approx", "sim": "approx", "doteq": "approx", "radic": "sqrt", "lbrace": "{", "rbrace": "}",
    "lbrack": "[", "rbrack": "]", "div": "/", "ast": "\\cdot", "bullet": "\\cdot", "tbinom": "binom", "dbinom": "binom",
    "arcsin": "arcsin", "colon": ":", "measuredangle": "angle", "lvert": "|", "rvert": "|", "vert": "|", "mid": "|",
}  # fmt: skip
_NUMBER = r"(?:\d+(?:\.\d+)?|\.\d+)"
PERCENT = re.compile(r"\s*(?:\\?%|\\text\{\s*(?:percent|per cent)\s*\}|(?<=[\d}\s])percent)\s*$", re.IGNORECASE)
DEGREES = re.compile(
    r"\s*\^\s*\{?\s*(?:\\circ(?:\s*\{\s*\})?|\\text\{\s*o\s*\}|o(?![A-Za-z]))\s*\}?\s*(?:\\text\{\s*[CF]\s*\}|[CF]\b)?"
)
FUNCTIONS = re.compile(r"\\?(?<![A-Za-z])(sin|cos|tan|cot|sec|csc|log|ln|sqrt|pi|infinity|infty|inf|oo)(?![A-Za-z])")
ABOUT = re.compile(
    r"\\text\{[^{}]*\b(?:about|approx|approximately|roughly)\b[^{}]*\}|(?:,|\bor\b)?\s*(?<!\\)\b(?:approx|approximately)\b\.?",
    re.IGNORECASE,
)
COLOURS = re.compile(r"\\(?:text)?color(?![A-Za-z])\s*(?:\[[^\]]*\]\s*)?\{[^{}]*\}")
OVER = re.compile(r"\\over(?![A-Za-z])")
LEADING = re.compile(
    r"^(?:\\(?:therefore|implies|Rightarrow|rightarrow)(?![A-Za-z])\s*)?(?:(?:\\approx(?![A-Za-z])|=|:|about\b)\s*)?"
)
POINT = re.compile(r"^(?:[A-Z]'?\s*|\(\s*[a-z]\s*(?:,\s*[a-z]\s*)+\)\s*=\s*)(?=\([^()]*,[^()]*\)$)")
"""The name of a point before its coordinates: "P(0, 4)", "(x, y) = (0, 4)"."""
STATEMENT = re.compile(r"\\(?:cong|parallel|perp)(?![A-Za-z])")
WORDS = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """latex: the expression without unit and percent sign; unit, percent: what stood behind it; words: all of it
    as words (``as_words``); written: all of it as cleaned; is_text: it is no formula ("not enough information")."""

    latex: str
    unit: Unit | None
    percent: bool
    words: str
    written: str
    is_text: bool


def read_answer(text: str) -> Answer:
    """The parts of an answer's text, of at most ``MAX_LENGTH`` characters; a longer one is only text."""
    if len(text) > MAX_LENGTH:
        return Answer(latex="", unit=None, percent=False, words=" ".join(text.split()), written=text, is_text=True)
    cleaned = clean(text)
    percent = PERCENT.search(cleaned) is not None
    latex = PERCENT.sub("", cleaned)
    latex, unit = _angle(latex)
    if unit is None:
        latex, unit = split_unit(latex)
    prose = re.sub(r"\\text\{\s*(?:and|or)\s*\}|\b(?:and|or)\b", ",", latex)
    prose = re.sub(r"\\(?:begin|end)\{\w+\}|\\text(?![A-Za-z])", "", prose)
    prose = prose.rpartition("=")[2]
    return Answer(
        latex=_outer_parentheses(numbers(_lists(latex))),
        unit=unit,
        percent=percent,
        words=as_words(cleaned),
        written=cleaned,
        is_text=WORDS.search(FUNCTIONS.sub("", prose)) is not None or STATEMENT.search(prose) is not None,
    )


def clean(text: str) -> str:
    """Symbols, fonts, layout and delimiters to one way of writing; see the module's example."""
    text = _unicode(text)
    while (opened := COMMANDS.search(text)) is not None:
        text = _unwrap(text, opened.start(), opened.end())
    text = _fractions(COLOURS.sub("", text))
    text = re.sub(r"\\surd\s*(\d+)", r"\\sqrt{\1}", text)
    text = re.sub(r"\{\s*\\(?:rm|bf|it)\s+([^{}]*)\}", r"\\text{\1}", text)
    text = re.sub(r"\\(?:rm|bf|it|sf|tt)(?![A-Za-z])\s*", "", text)
    text = text.replace("\\$", "").replace("\\left.", "").replace("\\right.", "")
    text = re.sub(r"\\[()]|\\[\[\]]|\$", " ", text)
    text = _LAYOUT.sub("", text)
    text = text.replace("{,}", ",").replace("\\!", "")
    text = re.sub(r"\\\\(?=[A-Za-z])", r"\\", text)
    text = text if "matrix}" in text else _SPACES.sub(" ", text)
    text = _TEXTS.sub(r"\\text", text)
    text = re.sub(r"\\([A-Za-z]+)", _rename, text)
    text = ABOUT.sub(r" \\approx ", text)
    text = re.sub(r"^\s*\\text\{\s*\(?[A-E]\)\s*\}\s*(?=\S)", "", text)  # "(C) 12"
    text = re.sub(r"\\overline\s*\{\s*([A-Z]{1,3})\s*\}", r"\1", text)
    text = re.sub(r"\s+", " ", text).strip().rstrip("\\").strip()
    text = re.sub(r"(?<!\\)[.;,:]+$", "", text).strip()
    return _outer_braces(POINT.sub("", LEADING.sub("", text)))


def as_words(cleaned: str) -> str:
    r"""Words without case and layout, for answers that are text: "\text{Not enough} data" -> "notenoughdata".

    What stands side by side (",", "and", a congruence) is sorted. Not for formulas: braces are gone.
    """
    text = re.sub(r"\\(?:text|overline|overrightarrow|overleftrightarrow|vec)(?![A-Za-z])", "", cleaned)
    items = re.split(r",|;|\\cong|\b(?:and|or)\b|\\", text.casefold().replace("\\angle", " angle "))
    return ",".join(sorted(filter(None, (re.sub(r"[^\w<>=+*/^-]", "", item) for item in items))))


def numbers(latex: str) -> str:
    """Separators, mixed, repeating and scientific numbers, and the shorthands of fractions, roots and powers."""
    latex = re.sub(r"(?<![A-Za-z\\])(?:sqrt)\s*", r"\\sqrt", latex)
    latex = re.sub(r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}", latex)
    latex = re.sub(r"\\sqrt\s*(\d)", r"\\sqrt{\1}", latex)
    latex = re.sub(r"(?<![A-Za-z\\])pi(?![A-Za-z])", r"\\pi ", latex)
    latex = re.sub(r"(?<![A-Za-z\\])(?:infinity|infty|inf|oo)(?![A-Za-z])", r"\\infty ", latex)
    latex = re.sub(r"\\frac\s*(\d)\s*(\d)(?!\d)", r"\\frac{\1}{\2}", latex)
    latex = re.sub(r"\\frac\s*(\d)\s*\{", r"\\frac{\1}{", latex)
    latex = re.sub(r"(\\frac\s*\{[^{}]*\}|\\frac\s*\{[^{}]*\{[^{}]*\}[^{}]*\})\s*(\d)", r"\1{\2}", latex)
    latex = latex.replace("**", "^").replace("*", r"\cdot ").replace("<=", r"\le ").replace(">=", r"\ge ")
    latex = re.sub(r"\^\s*(-?\d+)", r"^{\1}", latex)
    if not re.search(r"[(\[]|\\\{", latex):
        latex = re.sub(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])", lambda found: found.group().replace(",", ""), latex)
    latex = re.sub(r"(?<![\d.,])\d{1,3}(?: \d{3})+(?![\d,/])", lambda found: found.group().replace(" ", ""), latex)
    latex = re.sub(rf"({_NUMBER})\s*[eE]([+-]?\d+)(?![\d.A-Za-z])", r"\1\\cdot 10^{\2}", latex).replace("{+", "{")
    latex = re.sub(r"(\d+)(?:\s+|-|\s*\\text\{ *and *\}\s*)(\d+)/(\d+)(?![\d/])", _mixed, latex)
    latex = re.sub(r"(\d+)\.(\d*)\s*\\overline\s*\{(\d{1,30})\}", _repeating, latex)
    latex = re.sub(rf"^(-?{_NUMBER})\s*:\s*({_NUMBER})$", r"\\frac{\1}{\2}", latex.strip())
    latex = re.sub(r"(?<![\d.])(\.\d)", r"0\1", latex)
    latex = re.sub(r"(?<![\d.A-Za-z^])(\d+)\s*\\frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}", _improper, latex)
    return re.sub(r"\s+", " ", latex).strip()


def _unicode(text: str) -> str:
    text = re.sub(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ]+", lambda found: "^{" + found.group().translate(_SUPERSCRIPTS) + "}", text)
    text = re.sub(r"\\text\s*\{\s*([°º˚])\s*\}", r"\1", text)
    text = re.sub(r"([√∛])\s*(?:\(([^()]*)\)|(\d+(?:\.\d+)?|[A-Za-zπ]))", _root, text).replace("√", r"\sqrt")
    for symbol, latex in _SYMBOLS.items():
        text = text.replace(symbol, latex)
    text = re.sub(r"[¼-¾⅐-⅞]", _vulgar, text)
    return unicodedata.normalize("NFKC", text)


def _root(match: re.Match[str]) -> str:
    command = r"\sqrt" if match.group(1) == "√" else r"\sqrt[3]"
    return f"{command}{{{match.group(2) or match.group(3)}}}"


def _vulgar(match: re.Match[str]) -> str:
    above, _, below = unicodedata.normalize("NFKC", match.group()).partition("\u2044")
    return rf"\frac{{{above}}}{{{below}}}"


def _rename(match: re.Match[str]) -> str:
    name = _RENAMED.get(match.group(1), match.group(1))
    if match.group(1) in ("lbrace", "rbrace"):
        return "\\" + name
    return "\\" + name if name.isalpha() else name


def _unwrap(text: str, start: int, end: int) -> str:
    """The text with the box command at start and its braces gone."""
    close = matching_braces(text).get(end)
    if close is None:
        return text[:start] + " " + text[end:]
    return f"{text[:start]} {text[end + 1 : close]} {text[close + 1 :]}"


def _fractions(text: str) -> str:
    r"""TeX's own fractions: "{a \over b}" -> "\frac{a}{b}"; the group may be all of the text."""
    for _ in range(min(10, len(OVER.findall(text)))):
        place = next(OVER.finditer(text))
        around = [pair for pair in matching_braces(text).items() if pair[0] < place.start() < pair[1]]
        start, end = max(around, default=(-1, len(text)))
        above, below = text[start + 1 : place.start()].strip(), text[place.end() : end].strip()
        text = rf"{text[: max(0, start)]}\frac{{{above}}}{{{below}}}{text[end + 1 :]}"
    return text


def _outer_braces(text: str) -> str:
    r"""Without braces, or a \text{}, around all of it."""
    while True:
        start = 5 if text.startswith("\\text{") else 0
        if not text[start:].startswith("{") or matching_braces(text).get(start) != len(text) - 1:
            return text
        text = text[start + 1 : -1].strip()


def _outer_parentheses(latex: str) -> str:
    """Without the parentheses around all of it, unless they make a point or an interval: "(5)" -> "5"."""
    inner = latex[1:-1]
    if latex[:1] + latex[-1:] != "()" or "," in inner or re.search(r"[()]", inner):
        return latex
    return inner.strip()


def _angle(latex: str) -> tuple[str, Unit | None]:
    """Degree signs dropped, or as radians inside of sine and cosine."""
    if DEGREES.search(latex) is None:
        return latex, None
    if re.search(r"(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])", latex):
        return re.sub(rf"({_NUMBER}){DEGREES.pattern}", r"(\\frac{\1\\pi}{180})", latex), None
    return DEGREES.sub("", latex).strip(), DEGREE


def _lists(latex: str) -> str:
    r"""Words between answers as commas: "1 \text{ or } 2" -> "1 , 2"."""
    latex = re.sub(r"\s*,?\s*\\text\{\s*,?\s*(?:and|or)\s*\}\s*", ", ", latex)
    return re.sub(r"(?<=[\s\d})])\s*,?\s*\b(?:and|or)\b\s*", ", ", latex).replace(";", ",")


def _mixed(match: re.Match[str]) -> str:
    return rf"{match.group(1)}\frac{{{match.group(2)}}}{{{match.group(3)}}}"


def _improper(match: re.Match[str]) -> str:
    r"""3\frac{1}{2} -> \frac{7}{2}, also before a root; 3\frac{4}{2} is a product."""
    whole, above, below = match.groups()
    if len(match.group()) > 100 or int(above) >= int(below):
        return match.group()
    return rf"\frac{{{int(whole) * int(below) + int(above)}}}{{{below}}}"


def _repeating(match: re.Match[str]) -> str:
    """0.1\\overline{6} -> (16 - 1) / 90."""
    whole, fixed, cycle = match.groups()
    above = int(whole + fixed + cycle) - int(whole + fixed)
    return rf"\frac{{{above}}}{{{'9' * len(cycle) + '0' * len(fixed)}}}"
