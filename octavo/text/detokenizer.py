"""A sequence's tokens in, its newly visible text out: whole characters, cut at a stop string."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence, Set

from octavo.base.types.ports import TextTokenizer
from octavo.base.types.sampling import SamplingParams
from octavo.text.stops import StopMatcher


class Detokenizer:
    """One sequence's text. All deltas joined are the decoding of all its tokens, up to the stop string.

    stopped: the stop string that ended it, or None.  num_tokens: tokens taken; once stopped, those up to and with the
    one that completed the stop string: the sequence's output.  num_held: characters kept back, at most the longest
    stop string less one.
    kept_tokens: special tokens that are shown whatever params.skip_special_tokens says.
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        params: SamplingParams,
        prompt_ids: Sequence[int],
        *,
        kept_tokens: Set[int] = frozenset(),
    ) -> None:
        self._stream = tokenizer.stream(
            prompt_ids,
            skip_special_tokens=params.skip_special_tokens,
            spaces_between_special_tokens=params.spaces_between_special_tokens,
            kept_tokens=kept_tokens,
        )
        stops = params.stop_strings
        self._matcher = StopMatcher(stops) if stops else None
        self._min_tokens = params.min_tokens
        self._include_stop = params.include_stop_str_in_output
        self._held: deque[str] = deque()
        self.num_held = 0
        self.num_tokens = 0
        self.stopped: str | None = None

    def feed(self, token_id: int) -> str:
        """The text that became visible. `stopped` then tells whether a stop string has ended it: feed no more.

        A stop string that ends within the first params.min_tokens tokens does not stop.
        """
        self.num_tokens += 1
        text = self._stream.feed(token_id)
        return text if self._matcher is None else self._pass(text)

    def finish(self) -> str:
        """The rest, once the sequence has ended otherwise: held text, and U+FFFD for half a character."""
        if self.stopped is not None:
            return ""
        shown = self._pass(self._stream.finish())
        return shown if self.stopped is not None else shown + self._release(self.num_held)

    def _pass(self, text: str) -> str:
        """What can be shown of the text and of what was held before it: all that cannot become a stop string."""
        if not text or self._matcher is None:
            return text
        match = self._matcher.feed(text, armed=self.num_tokens > self._min_tokens)
        if match is None and not self._held and not self._matcher.held:
            return text
        self._held.append(text)
        self.num_held += len(text)
        if match is None:
            return self._release(self.num_held - self._matcher.held)
        self.stopped = match.stop
        cut = len(text) - match.end
        shown = self._release(self.num_held - cut - (0 if self._include_stop else len(match.stop)))
        self._held.clear()
        self.num_held = 0
        return shown

    def _release(self, count: int) -> str:
        """The first `count` held characters, held no more."""
        self.num_held -= count
        shown = []
        while count > 0:
            text = self._held.popleft()
            if len(text) > count:
                self._held.appendleft(text[count:])
                text = text[:count]
            shown.append(text)
            count -= len(text)
        return "".join(shown)
