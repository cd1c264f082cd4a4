// The server's routes as functions: JSON and streams out, ApiError where it refuses. The key lives in sessionStorage.

import { EventParser } from "./sse.js";

const KEY = "octavo.key";

/** What the server answered in place of what was asked. status 0: it did not answer at all. */
export class ApiError extends Error {
  constructor(status, message, { param = null, retryAfter = null } = {}) {
    super(message);
    this.status = status;
    this.param = param;
    this.retryAfter = retryAfter; // seconds
  }
}

let askForKey = async () => null;
let keyAccepted = () => {};
let asking = null;

/**
 * `ask(wrong)` resolves to a key, or to null where the reader gives none. wrong: a key was sent and refused.
 * accepted(): a key that was asked for has opened a route.
 */
export function onKeyNeeded(ask, accepted) {
  askForKey = ask;
  keyAccepted = accepted;
}

let memory = null;

function readKey() {
  try {
    return sessionStorage.getItem(KEY) ?? memory;
  } catch {
    return memory;
  }
}

function keepKey(key) {
  memory = key;
  try {
    sessionStorage.setItem(KEY, key);
  } catch {
    // kept in memory alone
  }
}

/** A good Response. quiet: a 401 is thrown and not asked about. */
export async function call(path, { body = null, signal = null, quiet = false } = {}) {
  let given = null;
  for (;;) {
    const key = readKey();
    const response = await send(path, body, signal, key);
    if (response.ok && given !== null) keyAccepted();
    if (response.ok) return response;
    const error = await refusal(response);
    if (response.status !== 401 || quiet) throw error;
    if (readKey() !== key) continue; // given meanwhile, for another call
    asking ??= askForKey(key !== null).finally(() => (asking = null));
    given = await asking;
    if (given === null) throw error;
    keepKey(given);
  }
}

async function send(path, body, signal, key) {
  const headers = {};
  if (key !== null) headers.authorization = `Bearer ${key}`;
  if (body !== null) headers["content-type"] = "application/json";
  const options = { method: body === null ? "GET" : "POST", headers, signal, cache: "no-store", credentials: "omit" };
  if (body !== null) options.body = JSON.stringify(body);
  try {
    return await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "The server does not answer.");
  }
}

async function refusal(response) {
  let detail = {};
  try {
    detail = (await response.json()).error ?? {};
  } catch {
    // not JSON: a proxy's page
  }
  const seconds = Number.parseFloat(response.headers.get("retry-after"));
  return new ApiError(response.status, detail.message ?? `The server answered ${response.status}.`, {
    param: detail.param ?? null,
    retryAfter: Number.isFinite(seconds) ? Math.max(0, seconds) : null,
  });
}

/** The chunks of a stream, parsed, until it says [DONE]. ApiError for an error within it, or where it breaks off. */
export async function* stream(path, body, signal) {
  const response = await call(path, { body, signal });
  const parser = new EventParser();
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (;;) {
      const { value, done } = await read(reader);
      if (done) throw new ApiError(0, "The connection ended before the answer did.");
      for (const data of parser.push(value)) {
        if (data === "[DONE]") return;
        const chunk = JSON.parse(data);
        if (chunk.error)
          throw new ApiError(chunk.error.code ?? 500, chunk.error.message, { param: chunk.error.param ?? null });
        yield chunk;
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // whatever the server still meant to say
  }
}

async function read(reader) {
  try {
    return await reader.read();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "The connection broke off.");
  }
}

/** Names that the model answers to, and the longest prompt + output in tokens (null until it is loaded). */
export async function models(options) {
  const list = (await (await call("v1/models", options)).json()).data ?? [];
  return { names: list.map((card) => card.id), longest: list[0]?.max_model_len ?? null };
}

/** {status: "ready" | "loading" | "draining" | "gone" | ..., loading}: never throws. */
export async function readiness() {
  try {
    const response = await fetch("readyz", { cache: "no-store", credentials: "omit" });
    const told = await response.json();
    return { status: String(told.status), loading: told.loading ?? null };
  } catch {
    return { status: "gone", loading: null };
  }
}
