"""`octavo chat MODEL`: a conversation in the terminal, streaming; with a question (argument or stdin): one answer."""

from __future__ import annotations

import sys
from typing import Any

import msgspec

from octavo.api.llm import LLM
from octavo.base.errors import InputError, OctavoError
from octavo.base.types.sampling import SamplingParams
from octavo.cli.flags import Parser, add_engine, add_model, add_sampling, shift_model, take_sampling
from octavo.cli.session import open_llm, take_varied, write_answer
from octavo.cli.streams import PIPED, read_stdin

HELP = "/exit leaves, /clear forgets the conversation, /system TEXT sets the system prompt, Ctrl-C stops an answer"
PROMPT = "> "
SAMPLING_HELP = "A model that recommends no sampling gets temperature 0.6 and top_p 0.95."
# for a model that recommends nothing: the protocol's temperature of 1 makes small models ramble
UNADVISED: dict[str, Any] = {"temperature": 0.6, "top_p": 0.95}


def main(arguments: list[str]) -> int:
    """Talk until /exit or the end of the input; the exit code."""
    parser = Parser("chat", "Talk to a model in the terminal. " + HELP + ". " + SAMPLING_HELP)
    add_model(parser)
    parser.add_argument("question", nargs="?", metavar="QUESTION", help=f"ask this, and leave; {PIPED}")
    parser.add_argument("--system", metavar="TEXT", help="system prompt", default=None)
    add_sampling(parser)
    add_engine(parser)
    values = parser.parse(arguments)
    shift_model(values, "question")
    config, question = take_varied(values), values.pop("question")
    take_sampling(values, SamplingParams())  # a mistake ends it before a text is asked for, or the model loaded
    question = _read_question(question)
    if question is not None and not (question := question.strip()):
        raise InputError("the question is empty", param="question")
    with open_llm(config) as llm:
        params = take_sampling(values, _unlimited(llm))
        conversation = Conversation(llm, params, system=values.get("system"))
        if question is not None:
            conversation.ask(question, once=True)
            return 0
        return _talk(conversation)


def _read_question(given: str | None) -> str | None:
    """With what is piped in before it; None for a conversation."""
    if given == "-":
        return read_stdin()
    if sys.stdin.isatty():
        return given
    return "\n\n".join(text for text in (read_stdin().strip(), given) if text)


def _unlimited(llm: LLM) -> SamplingParams:
    """The model's own recommendation or the terminal's, and answers as long as the context allows."""
    recommended = llm.get_default_sampling_params()
    if recommended == SamplingParams():
        recommended = SamplingParams(**UNADVISED)
    return msgspec.structs.replace(recommended, max_tokens=None)


class Conversation:
    """The messages so far; `ask` adds a question and its answer."""

    def __init__(self, llm: LLM, params: SamplingParams, *, system: str | None) -> None:
        self._llm = llm
        self._params = params
        self.system = system
        self.messages: list[dict[str, Any]] = []

    def ask(self, question: str, *, once: bool = False) -> str:
        """Stream the answer to stdout; a question that fails is not kept. once: Ctrl-C is the end, not the answer's."""
        ids = self.render(question)
        answer = write_answer(self._llm, ids, self._params, speed=sys.stderr.isatty(), once=once)
        self.messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return answer

    def render(self, question: str) -> list[int]:
        """The prompt of a question, in token ids."""
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return self._llm.render_chat([*system, *self.messages, {"role": "user", "content": question}])


def _talk(conversation: Conversation) -> int:
    conversation.render(HELP)  # a model that cannot chat says so now
    _line_editing()
    print(HELP, file=sys.stderr)
    while True:
        try:
            line = input(PROMPT).strip()
        except EOFError:
            print()
            return 0
        except UnicodeDecodeError as error:
            print(f"this is not text in {error.encoding}", file=sys.stderr)
            continue
        except KeyboardInterrupt:
            print("\n(/exit or Ctrl-D leaves)", file=sys.stderr)
            continue
        if line.startswith("/"):
            if not _command(conversation, line):
                return 0
        elif line:
            try:
                conversation.ask(line)
            except OctavoError as error:
                print(f"{error.message} (/clear forgets the conversation)", file=sys.stderr)
            except KeyboardInterrupt:  # before or after the answer: it ends the question, not the conversation
                print("\n(stopped; /exit or Ctrl-D leaves)", file=sys.stderr)


def _command(conversation: Conversation, line: str) -> bool:
    """Carry a /command out; False to leave."""
    name, _, rest = line.partition(" ")
    if name in ("/exit", "/quit", "/bye"):
        return False
    if name == "/clear":
        conversation.messages = []
        print("(a new conversation)", file=sys.stderr)
    elif name == "/system":
        conversation.system, conversation.messages = rest.strip() or None, []
        print("(a new conversation, with this system prompt)" if rest.strip() else "(none)", file=sys.stderr)
    else:
        known = name in ("/help", "/?")
        print(HELP if known else f"there is no command {name}; {HELP}", file=sys.stderr)
    return True


def _line_editing() -> None:
    """Arrow keys and history at the prompt, where Python was built with readline."""
    try:
        import readline
    except ImportError:
        return
    readline.set_history_length(1000)
