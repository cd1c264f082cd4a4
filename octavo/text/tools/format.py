"""What a format of tool calls is made of: how its calls are read, by which markers, and how they are to be written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from octavo.text.tools.bodies import Body

HARMONY = ("<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>")


@dataclass(frozen=True)
class Spelling:
    """How calls are to be written where they are forced. call: with $NAME and a place for the arguments.

    $ARGUMENTS: a JSON object.  $KEYWORDS: key=JSON, ....  $NUMBER: digits.  $ID: letters and digits.  $VALUES: bare
    values, each as `value` has it, with $KEY, $VALUE and perhaps $STRING: whether it is one, or $TYPE: JSON's name of
    its type.  before, between, after: around all calls.
    """

    call: str
    before: str = ""
    between: str = "\n"
    after: str = ""
    value: str = ""


@dataclass(frozen=True)
class Format:
    """One format.

    begins: what a call starts with.  bare: a call's first character, where one may also start the answer without
    any marker.  unmarked: what a call's text starts with where models leave its marker out, which is taken for a call
    of functions in tools only.  closers: what may stand behind a call, in any order.  wraps: markers around calls,
    shown to nobody.
    between: what separates calls.  inner: further markers inside of calls that may be special tokens.
    many: an answer may have several calls.  ids: how ids are made.
    messages: the answer is made of messages with heads, as OpenAI's harmony has them.
    signs: alternatives; a template with all strings of one is made for the format.  spelling: None where calls cannot
    be forced.
    """

    name: str
    body: Body
    begins: tuple[str, ...] = ()
    bare: str = ""
    unmarked: tuple[str, ...] = ()
    closers: tuple[str, ...] = ()
    wraps: tuple[str, ...] = ()
    between: str = ""
    inner: tuple[str, ...] = ()
    ids: Literal["openai", "mistral"] = "openai"
    messages: bool = False
    many: bool = True
    spelling: Spelling | None = None
    signs: tuple[tuple[str, ...], ...] = ()

    @property
    def tokens(self) -> tuple[str, ...]:
        """Every marker: special tokens among them must reach the parser."""
        return (*self.begins, *self.closers, *self.wraps, *self.inner, *(HARMONY if self.messages else ()))
