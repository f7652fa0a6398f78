"""Formulas as docstrings and pages have them, in plain text, as MathML: `u = v + d Du/Dt`, `1/(err + eps)^p`, `x_t`.

Browsers draw MathML themselves: the site needs no script and no font for it.
"""

# ruff: noqa: RUF001  (signs of mathematics look like letters)

import html
import re
from collections.abc import Iterator

TOKEN = re.compile(
    r"""(?P<space>\s+)
    | (?P<derivative>[Dd][A-Za-z]/[Dd][a-z]\b)
    | (?P<number>\d+(?:\.\d+)?(?:e-?\d+)?)
    | (?P<name>[A-Za-z]+\d?'*(?:\^-(?=[(\s]|$)|\^(?=[\s)]|$)|~(?=[\s),;:]|$))?)
    | (?P<sign>\.\.\.|->|<=|>=|!=|[-+*=<>|,;:.~%])
    | (?P<script>[_^])
    | (?P<slash>/)
    | (?P<open>[(\[{])
    | (?P<close>[)\]}])""",
    re.VERBOSE,
)
SIGNS = {"...": "…", "->": "→", "<=": "≤", ">=": "≥", "!=": "≠", "-": "−", "*": "·", ".": "·", "~": "∼"}
GREEK = {"alpha": "α", "beta": "β", "gamma": "γ", "sigma": "σ", "theta": "θ", "eps": "ε", "pi": "π", "lambda": "λ"}
ONE = re.compile(r"[A-Za-z]\d?'?(?:_[A-Za-z0-9])?|[A-Za-z](?:\^-?|~)")
"""A variable by itself."""
OPERATOR = re.compile(r"[-+*=|^~/<>] |\^|\d/|/\d|/\(|\)/|->|\b[Dd]\w/[Dd]\w\b|^(?:[A-Za-z]|sigmoid)\(")
CODE = re.compile(
    r"""["'`@#$&!?\\]\w|--|==|\*\*|\w=|=\w|[a-z]\.[a-z]|\w\w_[a-z]{2}|^[/.|] |^[/.]|:\w|\) ->|\*,|\]\[|/\d/"""
    r"|\b(?!d\w/d\w\b)[A-Za-z]{2,}/[a-z]{2}"
)
"""What code has and formulas have not."""


def is_formula(text: str) -> bool:
    """Whether a piece of code is one: a variable, or an expression with an operator and nothing that code alone has."""
    if ONE.fullmatch(text):
        return True
    text = text.replace("stop_gradient", "sg")
    return OPERATOR.search(text) is not None and CODE.search(text) is None and parsed(text) is not None


def mathml(text: str, *, block: bool = False) -> str:
    """The formula as a `math` element; `block` draws its quotients as fractions."""
    nodes = parsed(text.replace("stop_gradient", "sg"), block)
    assert nodes is not None, text
    alt = html.escape(text, quote=True)
    return f'<math display="{"block" if block else "inline"}" alttext="{alt}"><mrow>{nodes}</mrow></math>'


def parsed(text: str, block: bool = False) -> str | None:
    """The inside of the element; None where the text is no formula."""
    tokens = list(tokenized(text))
    if "".join(found for _, found in tokens) != text:
        return None
    try:
        nodes = row(tokens, block)
    except IndexError:
        return None
    return None if tokens else nodes


def tokenized(text: str) -> Iterator[tuple[str, str]]:
    """Kinds and texts of the tokens up to the first that is none."""
    position = 0
    while found := TOKEN.match(text, position):
        assert found.lastgroup is not None
        yield found.lastgroup, found[0]
        position = found.end()


def row(tokens: list[tuple[str, str]], block: bool) -> str:
    """Nodes up to a closing bracket or the end; takes the tokens from the list."""
    nodes: list[str] = []
    spaced = False
    while tokens and tokens[0][0] != "close":
        kind, text = tokens[0]
        if kind == "space":
            tokens.pop(0)
            spaced = True
            continue
        if kind == "sign":
            tokens.pop(0)
            if text == "|":
                nodes.append(scripts(bar(spaced and bool(nodes), tokens), tokens, block))
            else:
                nodes.append(f"<mo>{SIGNS.get(text, html.escape(text))}</mo>")
        elif kind == "slash":
            tokens.pop(0)
            while tokens[0][0] == "space":
                tokens.pop(0)
            below = operand(tokens, block)
            above = nodes.pop()
            nodes.append(f"<mfrac>{bare(above)}{bare(below)}</mfrac>" if block else f"<mrow>{above}<mo>/</mo>{below}</mrow>")
        else:
            node = operand(tokens, block)
            between = spaced and nodes and not nodes[-1].startswith("<mo")
            nodes += ['<mspace width="0.25em"></mspace>'] * bool(between) + [node]
        spaced = False
    return "".join(nodes)


def operand(tokens: list[tuple[str, str]], block: bool) -> str:
    """A number, a name, a call or a bracket, with what stands below and above it."""
    kind, text = tokens.pop(0)
    if kind == "derivative":
        d = {"D": "D", "d": "∂" if text[1] == "u" else "d"}[text[0]]
        above, below = (f'<mrow><mi mathvariant="normal">{d}</mi><mi>{letter}</mi></mrow>' for letter in (text[1], text[-1]))
        return f"<mfrac>{above}{below}</mfrac>"
    if kind == "sign" and text == "-":
        return f"<mrow><mo>−</mo>{operand(tokens, block)}</mrow>"
    if kind not in ("number", "name", "open"):
        raise IndexError(text)
    if kind == "open":
        node = bracket(text, tokens, block)
    else:
        node = f"<mn>{text}</mn>" if kind == "number" else named(text)
        node = scripts(node, tokens, block)
        if kind == "name" and tokens and tokens[0] == ("open", "("):
            node = f"<mrow>{node}{bracket(tokens.pop(0)[1], tokens, block)}</mrow>"
    return scripts(node, tokens, block)


def bar(spaced: bool, tokens: list[tuple[str, str]]) -> str:
    """A bar with the space that stands around it in the text, where it is not the end of a norm."""
    after = tokens[0][0] if tokens else ""
    before = "0.25em" if spaced and after not in ("", "script") else "0"
    return f'<mo stretchy="false" lspace="{before}" rspace="{before if after == "space" else "0"}">|</mo>'


def bracket(opening: str, tokens: list[tuple[str, str]], block: bool) -> str:
    """What stands between brackets, with them."""
    inside = row(tokens, block)
    return (
        f'<mrow data-bracket=""><mo stretchy="false">{opening}</mo>{inside}<mo stretchy="false">{tokens.pop(0)[1]}</mo></mrow>'
    )


def scripts(node: str, tokens: list[tuple[str, str]], block: bool) -> str:
    """The node with the index and the power that follow it."""
    while tokens and tokens[0][0] == "script":
        _, text = tokens.pop(0)
        node = f"<{'msub' if text == '_' else 'msup'}>{node}{operand(tokens, block)}</{'msub' if text == '_' else 'msup'}>"
    return node


def named(text: str) -> str:
    """A variable in italics, a word upright; `u1` has an index, `x'` a prime, `v~` a tilde, `x^` a hat, `u^-` a minus."""
    found = re.fullmatch(r"([A-Za-z]+)(\d?)('*)(\^-|\^|~)?", text)
    assert found is not None, text
    letters, digit, primes, mark = found.groups()
    name = GREEK.get(letters, letters)
    node = f"<mi>{name}</mi>" if len(name) == 1 else f'<mi mathvariant="normal">{name}</mi>'
    node = f"<msub>{node}<mn>{digit}</mn></msub>" if digit else node
    node = f"<msup>{node}<mo>{'′' * len(primes)}</mo></msup>" if primes else node
    if mark == "^-":
        return f"<msup>{node}<mo>−</mo></msup>"
    return f'<mover accent="true">{node}<mo>{"~" if mark == "~" else "^"}</mo></mover>' if mark else node


def bare(node: str) -> str:
    """A node without the brackets around all of it, which a fraction's bar makes needless."""
    found = re.fullmatch(r'<mrow data-bracket=""><mo stretchy="false">\(</mo>(.*)<mo stretchy="false">\)</mo></mrow>', node)
    return f"<mrow>{found[1]}</mrow>" if found else node


def in_page(content: str) -> str:
    """A page's HTML with its formulas drawn: code in running text, and blocks of which every line is made of formulas."""
    block = r'<div class="[^"]*highlight"><pre><span></span><code>(.*?)</code></pre></div>'
    content = re.sub(block, in_block, content, flags=re.DOTALL)
    return re.sub(r"(?<!<pre>)(?<!<span></span>)<code>([^<]*)</code>", in_text, content)


def in_text(found: re.Match[str]) -> str:
    """One piece of code, as MathML if it is a formula."""
    text = html.unescape(found[1])
    return f'<span class="formula">{mathml(text)}</span>' if is_formula(text) else found[0]


def in_words(text: str) -> str:
    """Text beside a formula, with its marked variables (`v~`, `u^-`, `x_t`) drawn."""
    words = (mathml(word) if len(word) > 1 and ONE.fullmatch(word) else html.escape(word) for word in text.split(" "))
    return " ".join(words)


def in_block(found: re.Match[str]) -> str:
    """A block of code, as formulas if it is made of them: several stand on a line with three spaces or more between."""
    text = html.unescape(re.sub(r"<[^>]*>", "", found[1])).strip("\n")
    lines = [re.split(r"\s{3,}", line.strip()) for line in text.splitlines()]
    if not all(is_formula(parts[0]) for parts in lines):
        return found[0]
    drawn = (mathml(part, block=True) if is_formula(part) else f"<p>{in_words(part)}</p>" for parts in lines for part in parts)
    return f'<div class="formulas">{"".join(drawn)}</div>'
