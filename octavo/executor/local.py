"""LocalExecutor: carries plans to the one backend in this process."""

from __future__ import annotations

from typing import Any

from octavo.base.types.plan import StepPlan, StepResult
from octavo.base.types.ports import Backend


class LocalExecutor:
    """An Executor over one Backend."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def begin(self, plan: StepPlan) -> None:
        """Start a step; returns at once."""
        self._backend.begin(plan)

    def mask(self, masks: dict[int, bytes]) -> None:
        """What the step begun last may sample, by row."""
        self._backend.mask(masks)

    def finish(self) -> StepResult:
        """The oldest step's result."""
        return self._backend.finish()

    def call(self, name: str, **arguments: Any) -> Any:
        """Ask the backend for something rare."""
        return self._backend.call(name, **arguments)

    def close(self) -> None:
        """Free the device."""
        self._backend.close()
