// Vercel's AI SDK: by @ai-sdk/openai-compatible generateText, streamText, tools, reasoning, objects, vectors; by
// @ai-sdk/anthropic text, tools, reasoning.
import assert from "node:assert/strict";
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embedMany, generateText, Output, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const [smollm2, replay, minilm] = process.argv.slice(2).map((url) => `${url}/v1`);
const connect = (baseURL) =>
  createOpenAICompatible({ name: "octavo", baseURL, apiKey: "none", includeUsage: true, supportsStructuredOutputs: true });
const PARIS = "The capital of France is Paris.";

const model = connect(smollm2)("smollm2");
const prompt = "What is the capital of France?";
const whole = await generateText({ model, prompt, temperature: 0 });
assert.equal(whole.text, PARIS);
assert.equal(whole.finishReason, "stop");
const stream = streamText({ model, prompt, temperature: 0 });
let text = "";
for await (const piece of stream.textStream) text += piece;
assert.equal(text, PARIS);
assert.deepEqual((await stream.usage).outputTokens, whole.usage.outputTokens);

const Person = z.object({ name: z.string(), age: z.number().int() });
const person = await generateText({
  model,
  prompt: "Ada is 36 years old. Give her name and age as JSON.",
  temperature: 0,
  output: Output.object({ schema: Person }),
});
Person.parse(person.output);

const scripted = connect(replay)("scripted");
const tools = {
  get_weather: tool({
    description: "How warm it is.",
    inputSchema: z.object({ city: z.string() }),
    execute: async ({ city }) => `22 degrees in ${city}`,
  }),
};
const ask = { model: scripted, prompt: "What is the weather in Paris?", tools, stopWhen: stepCountIs(3) };
const called = await generateText(ask);
assert.equal(called.steps[0].finishReason, "tool-calls");
assert.deepEqual(called.steps[0].toolCalls[0].input, { city: "Paris" });
assert.equal(called.text, "It is 22 degrees in Paris.");
const streamed = streamText(ask);
await streamed.consumeStream();
assert.equal(await streamed.text, "It is 22 degrees in Paris.");

const thought = await generateText({ model: scripted, prompt: "Think" });
assert.deepEqual([thought.reasoningText, thought.text], ["Two and two.", "Four."]);
const thinking = streamText({ model: scripted, prompt: "Think" });
await thinking.consumeStream();
assert.deepEqual([await thinking.reasoningText, await thinking.text], ["Two and two.", "Four."]);

const thoughts = ({ messages }) => messages.flatMap(({ content }) => content).filter(({ type }) => type === "reasoning");
const messages = createAnthropic({ baseURL: replay, apiKey: "none" })("scripted");
const budget = { anthropic: { thinking: { type: "enabled", budgetTokens: 1024 } } };
const asked = { model: messages, maxOutputTokens: 2048, tools, stopWhen: stepCountIs(3), providerOptions: budget };
for (const [question, answer, reasoning] of [
  ["What is the weather in Paris?", "It is 22 degrees in Paris.", undefined],
  ["Think", "Four.", "Two and two."],
]) {
  const told = await generateText({ ...asked, prompt: question });
  assert.deepEqual([told.text, told.reasoningText], [answer, reasoning]);
  const telling = streamText({ ...asked, prompt: question });
  await telling.consumeStream();
  assert.deepEqual([await telling.text, await telling.reasoningText], [answer, reasoning]);
  assert.deepEqual(thoughts(await telling.response), thoughts(told.response)); // what a later turn sends back
}

const { embeddings } = await embedMany({ model: connect(minilm).textEmbeddingModel("minilm"), values: ["a cat", "a kitten"] });
assert.deepEqual(embeddings.map((vector) => vector.length), [384, 384]);
await assert.rejects(generateText({ model: connect(smollm2)("none-such"), prompt, maxRetries: 0 }), /none-such/);
console.log("done");
