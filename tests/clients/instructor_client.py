"""instructor, run by an environment of its own (it needs an older openai): models out of chats, in all its modes."""

from __future__ import annotations

import sys

import instructor
import openai
from pydantic import BaseModel


class Person(BaseModel):
    name: str
    age: int


ADA = Person(name="Ada", age=36)


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def main(real: str, scripted: str) -> None:
    client = openai.OpenAI(base_url=scripted + "/v1", api_key="none")
    for mode, text in (
        (instructor.Mode.TOOLS, "Call Ada"),
        (instructor.Mode.TOOLS_STRICT, "Call Ada"),
        (instructor.Mode.JSON_SCHEMA, "Who is Ada?"),
    ):
        mended = instructor.from_openai(client, mode=mode)
        got = mended.chat.completions.create(model="scripted", messages=said(text), response_model=Person)
        assert got.model_dump() == ADA.model_dump(), (mode, got)
    partial = instructor.from_openai(client, mode=instructor.Mode.TOOLS).chat.completions.create_partial(
        model="scripted", messages=said("Begin Ada"), response_model=Person
    )
    assert list(partial)[-1].model_dump() == ADA.model_dump()

    client = openai.OpenAI(base_url=real + "/v1", api_key="none")
    for mode in (instructor.Mode.JSON_SCHEMA, instructor.Mode.TOOLS):
        got = instructor.from_openai(client, mode=mode).chat.completions.create(
            model="smollm2",
            messages=said("Ada is 36 years old. Give her name and age."),
            response_model=Person,
            temperature=0,
            max_tokens=200,
            max_retries=1,
        )
        assert isinstance(got, Person), (mode, got)


if __name__ == "__main__":
    main(*sys.argv[1:])
    print("done")
