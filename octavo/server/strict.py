"""What the types of clients' JSON are made of: a field that they do not have is refused by name, not passed over.

Subclasses say frozen=True once more for type checkers alone.
"""

from __future__ import annotations

import msgspec


class Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An object."""


class Tagged(Strict, frozen=True, tag_field="type"):
    """One of several kinds, which `type` tells apart: each has its tag."""
