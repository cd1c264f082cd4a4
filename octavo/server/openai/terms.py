"""An error about a chat request's field in; the same in the words of the request that the client sent out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from octavo.base.errors import InputError


@contextmanager
def in_terms(names: Mapping[str, str]) -> Iterator[None]:
    """Raise an InputError of the block with the client's name for the field.

    names: a field of ChatRequest -> the field that it was made of; it stands for what lies under it, too. An entry of
    a chat's `tools` holds a function; the client's is one itself, whose schema is called names["parameters"].
    """
    try:
        yield
    except InputError as error:
        param = error.param or ""
        found = next((name for name in names if _is_under(param, name)), None)
        # where the client's field is made of several, what lies under ours says nothing to the client
        name = param.replace("].function", "]", 1).replace("].parameters", f"].{names.get('parameters', 'parameters')}")
        name = name if found is None else names[found]
        if name == param:
            raise
        raise renamed(error, name) from None


def renamed(error: InputError, name: str) -> InputError:
    """The error with the client's name for its field. Longer names that hold the field's (max_logprobs) stay, and so
    does "the prompt", which is what a client's messages make.
    """
    field = re.escape(error.param or "")
    told = re.sub(rf"(?<!\w)(?<!the ){field}(?!\w)", lambda _: name, error.message) if field else error.message
    return type(error)(told, param=name)


def _is_under(param: str, name: str) -> bool:
    return param == name or param.startswith((name + ".", name + "["))
