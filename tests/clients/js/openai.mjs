// openai-js: chats, streams, a loop of tools by its runner, parse, Responses, vectors.
import assert from "node:assert/strict";
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

const [smollm2, replay, minilm] = process.argv.slice(2).map((url) => `${url}/v1`);
const connect = (baseURL) => new OpenAI({ baseURL, apiKey: "none" });
const said = (content) => [{ role: "user", content }];
const PARIS = "The capital of France is Paris.";

const real = connect(smollm2);
const ask = { model: "smollm2", messages: said("What is the capital of France?"), temperature: 0 };
assert.deepEqual((await real.models.list()).data.map((model) => model.id), ["smollm2"]);
assert.equal((await real.chat.completions.create(ask)).choices[0].message.content, PARIS);
let text = "";
for await (const chunk of await real.chat.completions.create({ ...ask, stream: true })) {
  text += chunk.choices[0]?.delta.content ?? "";
}
assert.equal(text, PARIS);
assert.equal(await real.chat.completions.stream(ask).finalContent(), PARIS);

const response = await real.responses.create({ model: "smollm2", input: ask.messages, temperature: 0 });
assert.equal(response.output_text, PARIS);
let heard = "";
for await (const event of await real.responses.create({ model: "smollm2", input: ask.messages, temperature: 0, stream: true })) {
  if (event.type === "response.output_text.delta") heard += event.delta;
}
assert.equal(heard, PARIS);

const Person = z.object({ name: z.string(), age: z.number().int() });
const parsed = await real.chat.completions.parse({
  ...ask,
  messages: said("Ada is 36 years old. Give her name and age as JSON."),
  response_format: zodResponseFormat(Person, "person"),
});
Person.parse(parsed.choices[0].message.parsed);

const scripted = connect(replay);
for (const stream of [false, true]) {
  const asked = [];
  const runner = scripted.chat.completions.runTools({
    model: "scripted",
    stream,
    messages: said("What is the weather in Paris?"),
    tools: [
      {
        type: "function",
        function: {
          name: "get_weather",
          description: "How warm it is.",
          parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
          parse: JSON.parse,
          function: ({ city }) => {
            asked.push(city);
            return `22 degrees in ${city}`;
          },
        },
      },
    ],
  });
  assert.equal(await runner.finalContent(), "It is 22 degrees in Paris.");
  assert.deepEqual(asked, ["Paris"]);
}

const vectors = await connect(minilm).embeddings.create({ model: "minilm", input: ["a cat", "a kitten"] });
assert.deepEqual(vectors.data.map((item) => item.embedding.length), [384, 384]);
await assert.rejects(real.chat.completions.create({ ...ask, model: "none-such" }), OpenAI.NotFoundError);
console.log("done");
