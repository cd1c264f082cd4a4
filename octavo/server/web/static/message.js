// One message in; its element out, which follows the message while it grows.

import { copyFrom, fit, h, icon, iconButton, isComposing } from "./dom.js";
import { highlight } from "./highlight.js";
import { MarkdownView } from "./render.js";

/**
 * actions: edit(node, text), again(node), goOn(node), remove(node), show(node) for another branch, results(node, texts),
 * hurry(node); false where they did nothing, as an answer is being written. context: {siblings, generation (or null),
 * busy: an answer is being written in this conversation, last, toolName}.
 */
export class MessageView {
  constructor(node, actions) {
    this.node = node;
    this.actions = actions;
    this.element = h("article", { class: `message ${node.role}`, "aria-label": NAMES[node.role], "data-id": node.id });
    this.prose = node.role === "assistant" ? new MarkdownView() : null;
    this.thought = null;
    this.context = null;
  }

  /** Show the message as it is now. */
  update(context) {
    this.context = context;
    if (this.editing) return;
    if (this.node.role === "assistant") this.#answer();
    else if (this.node.role === "tool") this.element.replaceChildren(result(this.node, context.toolName), this.#foot());
    else this.element.replaceChildren(h("div", { class: "bubble" }, this.node.content), this.#foot());
  }

  #answer() {
    const { node, context } = this;
    const running = Boolean(context.generation?.running);
    this.element.setAttribute("aria-busy", String(running));
    this.element.classList.toggle("running", running);
    this.prose.update(node.content);
    const thinking = running && node.content === "" && !node.toolCalls?.length;
    const parts = [
      this.#thought(thinking),
      this.prose.element,
      node.toolCalls?.length ? calls(node) : null,
      running && context.generation.waiting ? this.#wait(context.generation.waiting) : null,
      thinking && !node.reasoning && !context.generation.waiting
        ? h("div", { class: "dots", role: "img", "aria-label": "Waiting for the answer" }, h("i"), h("i"), h("i"))
        : null,
      node.error ? this.#fault(node.error) : null,
      !running && node.toolCalls?.length && context.last ? this.#resultsForm() : null,
      this.#foot(),
    ];
    this.#arrange(parts.filter((part) => part !== null));
  }

  // in place: what stands already is not moved, so that a selection in it, or an open fold, stays
  #arrange(parts) {
    for (const child of [...this.element.children]) if (!parts.includes(child)) child.remove();
    parts.forEach((part, i) => {
      if (this.element.children[i] !== part) this.element.insertBefore(part, this.element.children[i] ?? null);
    });
  }

  #thought(thinking) {
    const { node } = this;
    if (!node.reasoning) return null;
    this.thought ??= makeThought();
    this.thought.text.update(node.reasoning);
    // the whole answer is a thought: some was cut before it came to an end, some models mark no end
    const whole = !this.context.generation && !node.content && !node.toolCalls?.length;
    if (whole && !this.unfolded) this.thought.element.open = this.unfolded = true; // once: the reader may fold it
    const seconds = node.stats?.thought;
    const spent = seconds === undefined || seconds === null ? "Thought" : `Thought for ${showSeconds(seconds)}`;
    this.thought.label.textContent = thinking ? "Thinking …" : spent;
    this.thought.element.classList.toggle("thinking", thinking);
    return this.thought.element;
  }

  #wait({ seconds, reason, share, loading }) {
    const bar = share === null ? null : h("progress", { max: 1, value: share, "aria-label": reason });
    const words = loading ? `${reason}.` : `${reason}. Trying again in ${seconds} s.`;
    const now = loading
      ? null
      : h("button", { type: "button", class: "quiet", onclick: () => this.actions.hurry(this.node) }, "Try now");
    return h("div", { class: "notice" }, h("span", {}, words), bar, now);
  }

  #fault({ message, param, status }) {
    const where = param ? h("code", {}, param) : null;
    const again = h(
      "button",
      { type: "button", class: "quiet", onclick: () => this.actions.again(this.node) },
      "Try again",
    );
    return h(
      "div",
      { class: "notice fault", role: "alert" },
      icon("warning"),
      h("span", {}, status ? `${message} ` : message, where),
      this.context.busy ? null : again,
    );
  }

  #resultsForm() {
    if (this.form) return this.form;
    const fields = this.node.toolCalls.map((call) =>
      h("textarea", { rows: 2, "aria-label": `Result of ${call.name}`, placeholder: `Result of ${call.name}` }),
    );
    const send = (event) => {
      event.preventDefault();
      this.actions.results(
        this.node,
        fields.map((field) => field.value),
      );
    };
    this.form = h(
      "form",
      { class: "results", onsubmit: send },
      fields,
      h("button", { type: "submit", class: "primary" }, "Send results"),
    );
    return this.form;
  }

  #foot() {
    const { node, context, actions } = this;
    const buttons = [];
    if (context.siblings.length > 1) buttons.push(this.#branches());
    const copy = iconButton("copy", "Copy", () => copyFrom(copy, node.content));
    if (node.content && !context.generation?.running) buttons.push(copy);
    if (!context.busy) {
      if (node.role === "user") buttons.push(iconButton("edit", "Edit", () => this.edit()));
      if (node.role === "assistant") {
        buttons.push(iconButton("again", "Regenerate", () => actions.again(node)));
        const cut = node.content && !node.toolCalls?.length && ["length", "stopped"].includes(node.finish);
        if (cut && context.last) buttons.push(iconButton("onward", "Continue", () => actions.goOn(node)));
      }
      buttons.push(iconButton("trash", "Delete from here on", () => actions.remove(node)));
    }
    return h(
      "footer",
      { class: "foot" },
      h("div", { class: "actions" }, buttons),
      node.role === "assistant" ? stats(node) : null,
    );
  }

  #branches() {
    const { siblings } = this.context;
    const at = siblings.indexOf(this.node);
    const step = (by, name, label) =>
      iconButton(name, label, () => this.actions.show(siblings[at + by]), {
        disabled: this.context.busy || siblings[at + by] === undefined,
      });
    return h(
      "span",
      { class: "branches" },
      step(-1, "left", "Earlier version"),
      h("span", { "aria-label": `Version ${at + 1} of ${siblings.length}` }, `${at + 1}/${siblings.length}`),
      step(1, "right", "Later version"),
    );
  }

  /** Turn a message of the reader's into a field. */
  edit() {
    const field = h("textarea", { value: this.node.content, "aria-label": "Edit the message", dir: "auto" });
    const hint = h("span", { class: "fine", role: "status" });
    const close = () => {
      this.editing = false;
      this.update(this.context);
    };
    const end = () => {
      close();
      this.element.querySelector("[aria-label=Edit]")?.focus();
    };
    const save = (event) => {
      event?.preventDefault();
      const text = field.value.trim();
      if (!text) end();
      else if (this.actions.edit(this.node, text)) close();
      else hint.textContent = "Stop the answer, or wait for its end, to send this.";
    };
    const onkeydown = (event) => {
      if (isComposing(event)) return;
      if (event.key === "Enter" && !event.shiftKey) save(event);
      if (event.key !== "Escape") return;
      event.stopPropagation();
      end();
    };
    field.addEventListener("keydown", onkeydown);
    field.addEventListener("input", () => fit(field));
    this.editing = true;
    const cancel = h("button", { type: "button", class: "quiet", onclick: end }, "Cancel");
    this.element.replaceChildren(
      h(
        "form",
        { class: "editor", onsubmit: save },
        field,
        h("div", {}, hint, cancel, h("button", { type: "submit", class: "primary" }, "Send")),
      ),
    );
    fit(field);
    field.focus();
    field.setSelectionRange(field.value.length, field.value.length);
  }
}

const NAMES = { user: "You", assistant: "Answer", tool: "Result of a tool" };

function makeThought() {
  const text = new MarkdownView();
  const label = h("span");
  const element = h(
    "details",
    { class: "thought" },
    h("summary", {}, icon("thought"), label, icon("down")),
    text.element,
  );
  return { element, text, label };
}

function calls(node) {
  return h(
    "div",
    { class: "calls" },
    node.toolCalls.map((call) =>
      h(
        "figure",
        { class: "call" },
        h("figcaption", {}, icon("tool"), h("span", {}, call.name || "…")),
        h("pre", { tabindex: "0" }, h("code", {}, json(call.arguments))),
      ),
    ),
  );
}

function result(node, name) {
  return h(
    "figure",
    { class: "call result" },
    h("figcaption", {}, icon("tool"), h("span", {}, `Result of ${name}`)),
    h("pre", { tabindex: "0" }, node.content),
  );
}

function json(text) {
  let shown = text;
  try {
    shown = JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    // still growing
  }
  return highlight(shown, "json").map(([kind, piece]) => (kind ? h("span", { class: `code-${kind}` }, piece) : piece));
}

const REASONS = {
  length: "cut at the longest length",
  stopped: "stopped",
  abort: "ended by the server",
  error: "failed",
};

function stats(node) {
  const { speed, first, tokens, prompt, cached } = node.stats ?? {};
  const parts = [];
  if (speed) parts.push(h("b", { class: "speed" }, `${speed.toFixed(speed < 10 ? 1 : 0)} tokens/s`));
  if (first !== undefined && first !== null)
    parts.push(h("span", { title: "Time to the first token" }, `first after ${showSeconds(first)}`));
  if (tokens) {
    const more = prompt ? `${prompt} tokens of prompt, ${cached} of them found in the cache` : null;
    parts.push(h("span", { title: more }, `${tokens} token${tokens === 1 ? "" : "s"}`));
  }
  if (REASONS[node.finish]) parts.push(h("span", { class: "reason" }, REASONS[node.finish]));
  return h("div", { class: "stats" }, parts);
}

/** 0.084 -> 84 ms, 2.31 -> 2.3 s */
export function showSeconds(seconds) {
  if (seconds < 0.9995) return `${seconds < 0.00995 ? (seconds * 1000).toFixed(1) : Math.round(seconds * 1000)} ms`;
  return seconds < 99.5 ? `${seconds.toFixed(1)} s` : `${Math.round(seconds)} s`;
}
