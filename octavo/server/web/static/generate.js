// One answer being written: chunks of a stream in, a message that grows out. Waits and tries again where it is told to.

import { ApiError, readiness, stream } from "./api.js";
import { toRequest } from "./parameters.js";
import { toMessages } from "./tree.js";

const TRIES = 6; // of a request that is refused for being too many
const MOST_WAIT_S = 60;
const LEAST_TOKENS = 4; // for a speed that tells something
const MOST_CALLS = 128; // in one answer

/** conversation, node: what grows. onchange() after each chunk or state; `running` and `waiting` tell the state. */
export class Generation {
  #stop = new AbortController();
  #wake = null;
  #leaving = false; // the page is: Firefox breaks its connections off before it says so by pagehide

  constructor(conversation, node, { model, onchange, goOn = false }) {
    this.conversation = conversation;
    this.node = node;
    this.model = model;
    this.onchange = onchange;
    this.goOn = goOn;
    this.running = false;
    this.waiting = null; // {seconds, reason, share}: share of loading that is done, or null
  }

  /** Until the answer is there, stopped or failed; never throws for what a server or a reader can do. */
  async run() {
    const leave = () => (this.#leaving = true);
    addEventListener("beforeunload", leave);
    this.running = true;
    this.#tell();
    try {
      await this.#patiently();
    } catch (error) {
      this.#failed(error);
    }
    removeEventListener("beforeunload", leave);
    this.running = false;
    this.waiting = null;
    this.#tell();
  }

  // the later of two copies of a message is told by its revision
  #tell() {
    this.node.revision = (this.node.revision ?? 0) + 1;
    this.onchange();
  }

  stop() {
    this.#stop.abort();
    this.#wake?.();
  }

  /** Try again now, in place of waiting longer. */
  hurry() {
    this.#wake?.();
  }

  #failed(error) {
    if (this.#stop.signal.aborted || (this.#leaving && error.status === 0)) {
      this.node.finish = "stopped";
    } else if (error instanceof ApiError) {
      this.node.error = { status: error.status, message: error.message, param: error.param };
    } else {
      this.node.error = { status: 0, message: "The page could not read the answer.", param: null };
      console.error(error);
    }
  }

  async #patiently() {
    for (let tries = 1; ; tries++) {
      try {
        return await this.#once();
      } catch (error) {
        if (!this.#worthAnother(error, tries)) throw error;
        if ((await readiness()).status === "loading") {
          tries = 0;
          await this.#wait(2, "The model is loading", true);
        } else {
          const seconds = Math.min(MOST_WAIT_S, error.retryAfter ?? 2 ** tries);
          await this.#wait(seconds, error.status === 429 ? "Too many requests" : "The server is busy");
        }
        this.#stop.signal.throwIfAborted();
      }
    }
  }

  #worthAnother(error, tries) {
    const refused = error instanceof ApiError && (error.status === 429 || error.status === 503);
    return refused && tries < TRIES && !this.#began && !this.#stop.signal.aborted;
  }

  get #began() {
    return this.startedAt !== undefined && this.firstAt !== null;
  }

  async #wait(seconds, reason, loading = false) {
    for (let left = Math.ceil(seconds); left > 0 && !this.#stop.signal.aborted; left--) {
      const told = loading ? (await readiness()).loading : null;
      const share = told?.total ? told.done / told.total : null;
      this.waiting = { seconds: left, reason: told?.what ? `${reason}: ${told.what}` : reason, share, loading };
      this.onchange();
      if (await this.#sleep(1000)) break;
    }
    this.waiting = null;
    this.onchange();
  }

  // true where somebody called hurry() or stop()
  #sleep(milliseconds) {
    return new Promise((resolve) => {
      const timer = setTimeout(() => resolve(false), milliseconds);
      this.#wake = () => {
        clearTimeout(timer);
        resolve(true);
      };
    });
  }

  async #once() {
    const { node, conversation } = this;
    const messages = toMessages(conversation, this.goOn ? node.id : node.parent);
    const body = toRequest(conversation.settings, this.model, messages);
    if (this.goOn) Object.assign(body, { continue_final_message: true, add_generation_prompt: false });
    this.startedAt = performance.now();
    this.firstAt = null;
    this.firstTokens = null; // generated until something was to be seen
    this.earlier = this.goOn ? (node.stats?.tokens ?? 0) : 0;
    this.thoughtAt = null;
    for await (const chunk of stream("v1/chat/completions", body, this.#stop.signal)) this.#take(chunk);
  }

  #take(chunk) {
    const { node } = this;
    node.stats ??= {};
    const choice = chunk.choices?.[0];
    const delta = choice?.delta ?? {};
    const thought = delta.reasoning ?? delta.reasoning_content ?? "";
    const grew = Boolean(thought || delta.content || delta.tool_calls?.length);
    if (grew) this.firstAt ??= performance.now();
    if (thought) {
      this.thoughtAt ??= performance.now();
      node.reasoning = (node.reasoning ?? "") + thought;
    }
    if (delta.content || delta.tool_calls?.length) this.#thoughtEnds();
    node.content += delta.content ?? "";
    for (const piece of delta.tool_calls ?? []) takeCall(node, piece);
    if (choice?.finish_reason) {
      node.finish = choice.finish_reason;
      this.#thoughtEnds();
    }
    if (chunk.model) node.model = chunk.model;
    this.#measure(chunk.usage, grew);
    this.#tell();
  }

  #thoughtEnds() {
    if (this.thoughtAt !== null) this.node.stats.thought = (performance.now() - this.thoughtAt) / 1000;
    this.thoughtAt = null;
  }

  // tokens a second leave out what came before the first that was to be seen, as that was waited for apart
  #measure(usage, grew) {
    const { node } = this;
    if (grew) this.firstTokens ??= usage?.completion_tokens ?? 1;
    if (grew) node.stats.seconds = (performance.now() - this.firstAt) / 1000;
    if (this.firstAt !== null && !this.goOn) node.stats.first = (this.firstAt - this.startedAt) / 1000;
    if (!usage) return;
    node.stats.tokens = this.earlier + usage.completion_tokens;
    node.stats.prompt = usage.prompt_tokens;
    node.stats.cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
    const own = usage.completion_tokens - (this.firstTokens ?? 0);
    if (own >= LEAST_TOKENS && node.stats.seconds > 0) node.stats.speed = own / node.stats.seconds;
  }
}

function takeCall(node, piece) {
  node.toolCalls ??= [];
  const at = piece.index ?? node.toolCalls.length;
  if (at > MOST_CALLS) return;
  while (node.toolCalls.length <= at) node.toolCalls.push({ id: "", name: "", arguments: "" });
  const call = node.toolCalls[at];
  call.id ||= piece.id ?? "";
  call.name += piece.function?.name ?? "";
  call.arguments += piece.function?.arguments ?? "";
}
