"""The model's names: what /v1/models shows, and which `model` a request may carry."""

from __future__ import annotations

from collections.abc import Sequence

from octavo.base.config.resolve import own_name
from octavo.base.errors import ModelNotFoundError


class ModelNames:
    """`served` as configured, or the model's own name."""

    def __init__(self, model: str, served: Sequence[str]) -> None:
        own = own_name(model)
        self.served = list(served) or [own]
        self._accepted = {*self.served} if served else {own, model}

    @property
    def first(self) -> str:
        """The name that replies carry."""
        return self.served[0]

    def check(self, model: str | None) -> None:
        """Raise a 404 for a model that is not served; none named means the one there is."""
        if model is not None and model not in self._accepted:
            shown = model if len(model) <= 100 else model[:100] + "…"
            raise ModelNotFoundError(
                f"the model {shown!r} is not served here; GET /v1/models lists what is", param="model"
            )
