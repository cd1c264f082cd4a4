"""GBNF: what its grammars admit, against a plain matcher of characters; what is wrong with one, by line."""

from __future__ import annotations

import random
import time
from functools import cache

import pytest

from octavo.base.errors import InputError
from octavo.base.types.structured import StructuredOutputsParams
from octavo.engine.grammar.checker import Checker
from octavo.engine.grammar.checker_main import small_vocabulary
from octavo.engine.grammar.following import regexes
from octavo.engine.grammar.gbnf import Node, is_gbnf, parse
from octavo.engine.grammar.gbnf_lark import gbnf_to_lark
from octavo.engine.grammar.llguidance import compile_matcher, make_tokenizer

TOKENIZER = make_tokenizer(small_vocabulary({}))

JSON = r"""
# JSON, as llama.cpp's users write it
root   ::= object
value  ::= object | array | string | number |
           ("true" | "false" | "null") ws
object ::= "{" ws ( member ("," ws member)* )? "}" ws
member ::= string ":" ws value
array  ::= "[" ws (
    value ("," ws value)*
  )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt/] | "u" [0-9a-fA-F]{4}) )* "\"" ws
number ::= "-"? ("0" | [1-9] [0-9]{0,15}) ("." [0-9]+)? ([eE] [-+]? [0-9]+)? ws
ws     ::= | " " | "\n" [ \t]{0,20}
"""
WS = r"/(?:|\x{20}|\x{a}(?:[\x{9}\x{20}]){0,20})/"
CALLS = """
root ::= call
call ::= name "(" ws (arg ws ("," ws arg ws)*)? ")"
arg ::= name "=" ws expr
expr ::= call | name | int | expr ws op ws expr | "if" ws expr
name ::= [a-z_] [a-z0-9_]*
int ::= [0-9]+
op ::= "+" | "-" | "*" "*"?
ws ::= [ ]*
"""
# name: grammar, texts that it admits, texts that it does not
GRAMMARS: dict[str, tuple[str, list[str], list[str]]] = {
    "choice": ('root ::= "yes" | "no"', ["yes", "no"], ["", "y", "yesno"]),
    "rules": ("root ::= my-rule{2,3}\nmy-rule ::= [a\\]/-]", ["a]", "/-a"], ["a", "aaaa", "b"]),
    "lines": ('root ::= "a" |\n  "b"\n  | (\n"c"\n"d") # end\n\n# more\n', ["a", "b", "cd"], ["c"]),
    "escapes": (
        r'root ::= "\x41\u00e9\U0001F600\"\\\n\t" [\x30-\x32\n\[\]\-^]',
        ['Aé😀"\\\n\t1', 'Aé😀"\\\n\t^'],
        ["A"],
    ),
    "raw line end": ('root ::= "a\nb" [ \n]', ["a\nb\n", "a\nb "], ["a b "]),
    "not": (r"root ::= [^a-z\ue000]{2} [^]", ["AB\n", "日-a"], ["ab\n", "AB"]),
    "any": ("root ::= . . ", ["\n\n", "😀x"], ["a", "aaa"]),
    "counts": (
        'root ::= "ab"{2} "c"{1,} "d"{0} "e"{0,1} "f"{ 0 , 2 }',
        ["ababc", "ababccef", "ababcff"],
        ["abc", "ababcd"],
    ),
    "greedy": ('root ::= [a-z]+ "b" root | ""', ["ab", "abbb", "", "abcb"], ["a", "b", "aba"]),
    "longer word": (
        'root ::= ("in" | "int" | "i") rest\nrest ::= "t" rest | "x"',
        ["intx", "ix", "inttx", "itx"],
        ["int", "inx x"],
    ),
    "common begin": (
        'root ::= "abd" root | [a-z] [a-z] "c" root | "."',
        ["abd.", "abc.", "abcabd."],
        ["abe.", "ab."],
    ),
    "left recursion": ('root ::= root "+" n | n\nn ::= [0-9]+', ["1", "12+3+4"], ["+1", "1+"]),
    "brackets": ('root ::= "(" root ")" | ""', ["", "()", "((()))"], ["(", "())"]),
    "palindromes": ('root ::= "a" root "a" | "b" root "b" | "a" | "b"', ["a", "aba", "abbabba"], ["ab", "abab"]),
    "json": (
        JSON,
        ["{}", '{"a": [1, -2.5e3,true, {"b":"x\\u00e9\\n, }"}], "":null}', '{\n\t"a":"é日😀"}'],
        ["[]", '{"a" 1}', '{"a":01}', '{"a":"\\x"}', '{"a":1,}'],
    ),
    "calls": (
        CALLS,
        ["f()", "go(iffy= if x + 2,b=g( a=1 ))", "f(x=if y)", "f(a=b**2 - in)"],
        ["f", "f(1)", "f(a=)", "f(a=2x)"],
    ),
}


def admits(grammar: str, text: str) -> bool:
    matcher = compile_matcher(TOKENIZER, StructuredOutputsParams(grammar=grammar), ())
    data = list(text.encode())
    return matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting()


@pytest.mark.parametrize("name", GRAMMARS)
def test_grammars(name: str) -> None:
    grammar, good, bad = GRAMMARS[name]
    assert is_gbnf(grammar)
    assert [text for text in good if not admits(grammar, text)] == []
    assert [text for text in bad if admits(grammar, text)] == []


class Plain:
    """Matches by characters: all ends that a part may have from a place on."""

    def __init__(self, grammar: str) -> None:
        self.rules = parse(grammar)

    def admits(self, text: str) -> bool:
        @cache
        def ends(node: Node, at: int, left: int) -> frozenset[int]:
            if left == 0:
                return frozenset()
            if node.kind == "text":
                return frozenset([at + len(node.text)] if text.startswith(node.text, at) else [])
            if node.kind == "chars":
                fits = at < len(text) and any(low <= ord(text[at]) <= high for low, high in node.chars)
                return frozenset([at + 1] if fits else [])
            if node.kind == "rule":
                return ends(self.rules[node.text], at, left - 1)
            if node.kind == "any":
                return frozenset().union(*(ends(part, at, left) for part in node.parts))
            if node.kind == "all":
                found = frozenset([at])
                for part in node.parts:
                    found = frozenset().union(*(ends(part, place, left) for place in found))
                return found
            found, reached = frozenset([at]), frozenset([at] if not node.low else [])
            for count in range(1, min(node.low + len(text) + 1, 99 if node.high is None else node.high) + 1):
                found = frozenset().union(*(ends(node.parts[0], place, left) for place in found))
                reached |= found if count >= node.low else frozenset()
            return reached

        return len(text) in ends(self.rules["root"], 0, 12)


def random_grammar(rng: random.Random) -> str:
    names = ["root", "x", "y-z"]

    def part(depth: int) -> str:
        kind = rng.randrange(8 if depth else 4)
        if kind < 2:
            return '"' + "".join(rng.choices("ab", k=rng.choice([0, 1, 1, 2, 2, 3]))) + '"'
        if kind == 2:
            return rng.choice(["[ab]", "[^a]", "[a]", "[b-c]"])
        if kind == 3:
            return rng.choice(names)
        if kind == 4:
            return f"({part(depth - 1)} | {part(depth - 1)})"
        if kind == 5:
            return f"({part(depth - 1)}){rng.choice(['*', '+', '?', '{2}', '{1,2}', '{0}', '{2,}'])}"
        return " ".join(part(depth - 1) for _ in range(rng.randint(1, 3)))

    return "\n".join(f"{name} ::= {part(3)} | {part(2)}" for name in names)


@pytest.mark.parametrize("seed", range(12))
def test_random_grammars_are_those_of_a_plain_matcher(seed: int) -> None:
    """Of two letters, so that everything may go on everything."""
    rng = random.Random(seed)
    texts = ["".join(rng.choices("aabbc", k=size)) for size in (0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6) for _ in range(3)]
    for _ in range(25):
        grammar = random_grammar(rng)
        plain = Plain(grammar)
        try:
            gbnf_to_lark(grammar)
        except InputError:  # by `root` no text begins
            assert not any(map(plain.admits, texts))
            continue
        for text in texts:
            assert admits(grammar, text) == plain.admits(text), (grammar, text, gbnf_to_lark(grammar))


def test_strings_are_one_lexeme() -> None:
    """A character at a time masks take 250 times as long."""
    member = next(line for line in gbnf_to_lark(JSON).splitlines() if line.startswith("r3:"))
    assert member.startswith(r"r3: /\x{22}(?:(?:[")
    assert member.endswith(' ":" ' + WS + " r1")


@pytest.mark.parametrize(
    ("grammar", "words"),
    [
        ('root ::= "a"\nx ::= yes', "line 2: there is no rule 'yes'"),
        ('root ::= "a\nx ::= b', "line 1, at '\"a': the text has no closing"),
        ("root ::= [a-z", "line 1, at '[a-z': the character class has no closing ]"),
        ("root ::= [z-a]", "line 1, at '[z-a]': a range of the character class is empty"),
        ("root ::= []", "the character class admits no character"),
        ('root ::= ("a"\n|\n"b"', "line 3, at its end: '(' of line 1 is not closed"),
        ('root ::= "a" )', "line 1, at ')': ')' closes no group"),
        ('# b\nroot ::= "\\q"', "line 2, at '\\\\q\"': an unknown escape"),
        ('root ::= "\\x4"', "an unknown escape"),
        ('root ::= "\\ud83d"', "half a character"),
        ('root ::= "\\', "an unknown escape"),
        ('root ::= "a" @', "line 1, at '@': a \"text\", a [class], the name of a rule or a (group) is expected"),
        ("root ::= <think> x", 'a "text", a [class]'),
        ('root ::= "a"{', "a count is {m}, {m,} or {m,n}"),
        ('root ::= "a"{3,2}', "counts go up to 10000"),
        ('root ::= "a"{10001}', "counts go up to 10000"),
        ('root ::= "a"++', "line 1, at '+'"),
        ('root ::= "a"\nroot ::= "b"', "line 2, at 'root ::= \"b\"': the rule 'root' is there twice, first in line 1"),
        ('start ::= "a"', "there is no rule 'root'"),
        ('root ::= x "a"\nx ::= root', "no text begins by the rule 'root'"),
        (f'root ::= "{"a" * 8193}"', "a text of 8193 characters; at most 8192"),
        (f"root ::= {'(' * 65}", "groups nest deeper than 64"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(grammar: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        admits(grammar, "")
    assert words in caught.value.message
    assert caught.value.message.startswith("structured_outputs.grammar")
    assert caught.value.param == "structured_outputs.grammar"


BOMBS = {
    "groups": f"root ::= {'(' * 50000}",
    "choices": f"root ::= {'|' * 500000}",
    "rules": "\n".join(f'r{i} ::= r{i + 1} | root "z"' for i in range(5000)) + '\nr5000 ::= "x"\nroot ::= r0',
    "chain": 'root ::= r0\nr990 ::= "x"\n' + "\n".join(f'r{i} ::= r{i + 1} | root "z"' for i in range(990)),
    "words": "root ::= " + " | ".join(f'"w{i}" root' for i in range(3000)),
    "parts": "root ::= " + " ".join(f'"{i}" root' for i in range(20000)),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_in_time(name: str) -> None:
    checker = Checker({})
    begin = time.monotonic()
    try:
        with pytest.raises(InputError):
            checker.check(StructuredOutputsParams(grammar=BOMBS[name]))
        doubled = "root ::= r0\n" + "\n".join(f"r{i} ::= r{i + 1} r{i + 1}" for i in range(60)) + '\nr60 ::= "x"'
        checker.check(StructuredOutputsParams(grammar=doubled))
    finally:
        checker.close()
    assert time.monotonic() - begin < 20


def test_counts_are_followed_as_those_of_a_regex() -> None:
    counted = 'root ::= ("a" | [c-z]{1,20}){1,1000} "." root | "b"'
    assert regexes(StructuredOutputsParams(grammar=counted)) == ["(?:(?:a|(?:[c-z]){1,20})){1,1000}"]


def test_lark_is_not_taken_for_gbnf() -> None:
    assert not is_gbnf('start: "a ::= b" /x ::= y/')
    assert is_gbnf('# comment\n  root\n ::= "a"')
