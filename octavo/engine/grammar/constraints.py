"""The engine's side of grammars: sequences wait until theirs is compiled; each step's plan in, its rows' masks out."""

from __future__ import annotations

import logging
import time
from concurrent.futures import FIRST_COMPLETED, Future, wait

from octavo.base.errors import InputError, OctavoError
from octavo.base.types.output import Output
from octavo.engine.grammar.grammar import Grammar, GrammarError, Grammars
from octavo.engine.scheduler import Scheduled, Scheduler
from octavo.engine.sequence import ALL, Sequence, Status
from octavo.engine.update import end, fail

_log = logging.getLogger(__name__)

PAUSE = 0.005  # seconds that a step with nothing else to do waits for a compilation


class Constraints:
    """Of one engine. grammars None: none can be compiled here, and requests that ask are refused."""

    def __init__(self, scheduler: Scheduler, grammars: Grammars | None) -> None:
        self._scheduler = scheduler
        self._grammars = grammars
        self._compiling: dict[Future[Grammar], Sequence] = {}

    @property
    def num_deferred(self) -> int:
        """Sequences that wait for their grammar."""
        return sum(seq.status is Status.WAITING for seq in self._compiling.values())

    def begin(self, sequences: list[Sequence]) -> None:
        """Compile for a request's sequences, which wait. Raises InputError where nothing can be compiled."""
        params = sequences[0].request.params.structured_outputs
        if params is None:
            return
        if self._grammars is None:
            raise InputError("structured_outputs need a tokenizer, and there is none", param="structured_outputs")
        for seq in sequences:
            self._compiling[self._grammars.compile(params)] = seq

    def settle(self) -> list[Output]:
        """Give sequences the grammars that have come; the ends of those that have none."""
        if not self._compiling:
            return []
        outputs = []
        for future, seq in list(self._compiling.items()):
            if not future.done() and seq.status is not Status.FINISHED:
                continue
            del self._compiling[future]
            if seq.status is Status.FINISHED:
                future.cancel()  # else others wait for what nobody wants
                continue
            try:
                seq.grammar = future.result()
                seq.times.grammar = time.monotonic() - seq.times.arrival
            except OctavoError as error:
                outputs.append(fail(self._scheduler, seq, error.message, kind=type(error).__name__))
            except Exception as error:  # one grammar's fault ends its own request
                _log.exception("a grammar was not compiled")
                reason = f"the grammar was not compiled ({type(error).__name__})"
                outputs.append(fail(self._scheduler, seq, reason, kind="RequestFailedError"))
        return outputs

    def pause(self) -> None:
        """Nothing else is to be done: wait a little for what is being compiled."""
        if self._compiling:
            wait(self._compiling, timeout=PAUSE, return_when=FIRST_COMPLETED)

    def masks(self, scheduled: Scheduled, outputs: list[Output]) -> dict[int, bytes]:
        """Masks for the step's masked rows, by row. All earlier steps were read.

        A row whose sequence has ended, now or before, has no mask. outputs: gets the ends of those that end now, which
        are told whatever is raised here.
        """
        wanted: list[tuple[int, Sequence, Grammar]] = []
        masked = set(scheduled.plan.masked)
        for step, (seq, _, _) in zip(scheduled.plan.rows, scheduled.chosen, strict=True):
            grammar = seq.grammar
            if step.row not in masked or grammar is None or seq.status is Status.FINISHED:
                continue
            try:
                grammar.take(seq.tokens[seq.num_prompt + grammar.num_taken :])
                if grammar.over() and not _may_end(seq):
                    outputs.append(end(self._scheduler, seq))
                else:
                    wanted.append((step.row, seq, grammar))
            except GrammarError as error:
                outputs.append(fail(self._scheduler, seq, error.message, kind="RequestFailedError"))
            except Exception as error:  # as above
                _log.exception("a grammar did not go on")
                reason = f"the grammar did not go on ({type(error).__name__})"
                outputs.append(fail(self._scheduler, seq, reason, kind="RequestFailedError"))
        found: dict[int, bytes] = {}
        if self._grammars is not None and wanted:
            masks = self._grammars.masks([grammar for _, _, grammar in wanted])
            for (row, seq, _), mask in zip(wanted, masks, strict=True):
                if isinstance(mask, GrammarError):  # its grammar met a limit
                    outputs.append(fail(self._scheduler, seq, mask.message, kind="InputError"))
                else:
                    found[row] = _narrowed(mask, seq) if seq.allowed != ALL or seq.ignored else mask
        return found

    def close(self) -> None:
        """End the threads."""
        if self._grammars is not None:
            self._grammars.close()


def _may_end(seq: Sequence) -> bool:
    """An end-of-text token may be sampled, and ends the sequence."""
    request = seq.request
    long_enough = seq.num_tokens - seq.num_prompt >= request.params.min_tokens
    return long_enough and not request.params.ignore_eos and bool(request.eos_token_ids)


def _narrowed(mask: bytes, seq: Sequence) -> bytes:
    """By allowed_token_ids; ends of the text that are ignored remain only where nothing else does."""
    bits = int.from_bytes(mask, "little")
    return ((bits & ~seq.ignored or bits) & seq.allowed).to_bytes(len(mask), "little")
