// The sampling controls as a table, and a conversation's settings as the fields of a request.

/** One row a control; a value that is not set is left out of the request, so that the model's own default holds. */
export const CONTROLS = [
  {
    name: "temperature",
    label: "Temperature",
    least: 0,
    most: 2,
    step: 0.05,
    about: "0 always takes the likeliest token; higher is freer.",
  },
  {
    name: "top_p",
    label: "Top p",
    least: 0.05,
    most: 1,
    step: 0.05,
    about: "Only the likeliest tokens that together reach this share.",
  },
  {
    name: "top_k",
    label: "Top k",
    least: 0,
    most: 200,
    step: 1,
    about: "Only so many of the likeliest tokens; 0 is all.",
  },
  {
    name: "min_p",
    label: "Min p",
    least: 0,
    most: 1,
    step: 0.01,
    about: "Only tokens at least this likely beside the likeliest.",
  },
  { name: "max_tokens", label: "Max tokens", least: 1, most: null, step: 1, about: "The longest answer." },
  { name: "seed", label: "Seed", least: 0, most: null, step: 1, about: "The same seed gives the same answer." },
  {
    name: "repetition_penalty",
    label: "Repetition penalty",
    least: 0.5,
    most: 2,
    step: 0.05,
    about: "Above 1, tokens seen before become less likely.",
  },
  {
    name: "presence_penalty",
    label: "Presence penalty",
    least: -2,
    most: 2,
    step: 0.1,
    about: "Taken once from tokens already written.",
  },
  {
    name: "frequency_penalty",
    label: "Frequency penalty",
    least: -2,
    most: 2,
    step: 0.1,
    about: "Taken for each time a token was written.",
  },
];

/** Why the text is no list of tools; null where it is one, or empty. */
export function toolsFault(text) {
  if (!text?.trim()) return null;
  try {
    const tools = JSON.parse(text);
    if (!Array.isArray(tools)) return "A JSON list is needed.";
    return tools.every((tool) => typeof tool?.function?.name === "string")
      ? null
      : "Each tool needs a function with a name.";
  } catch (error) {
    return error.message;
  }
}

/** The body of POST /v1/chat/completions. */
export function toRequest(settings, model, messages) {
  const body = { messages, stream: true, stream_options: { include_usage: true, continuous_usage_stats: true } };
  if (model) body.model = model;
  for (const { name } of CONTROLS) if (typeof settings[name] === "number") body[name] = settings[name];
  if (settings.tools?.trim() && !toolsFault(settings.tools)) body.tools = JSON.parse(settings.tools);
  return body;
}
