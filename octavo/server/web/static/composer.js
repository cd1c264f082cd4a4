// The field in which one writes: it grows with its text; its button sends, or stops the answer that is being written.

import { fit, h, icon, isComposing } from "./dom.js";

export class Composer {
  /** onsend(text), onstop(), onlast(): the reader wants to edit the last message. */
  constructor({ onsend, onstop, onlast }) {
    this.callbacks = { onsend, onstop, onlast };
    this.running = false;
    this.field = h("textarea", {
      id: "message",
      rows: 1,
      dir: "auto",
      placeholder: "Write a message",
      "aria-label": "Message",
      "aria-describedby": "composer-hint",
      oninput: () => this.#refresh(),
      onkeydown: (event) => this.#key(event),
    });
    this.button = h("button", { type: "submit", class: "send" });
    this.hint = h("span", { id: "composer-hint" });
    this.context = h("span", { class: "context" });
    this.element = h(
      "form",
      { class: "composer", onsubmit: (event) => this.#submit(event) },
      h("div", { class: "box" }, this.field, this.button),
      h("div", { class: "below" }, this.hint, this.context),
    );
    this.hint.append(h("kbd", {}, "Enter"), " sends, ", h("kbd", {}, "Shift Enter"), " begins a line");
    this.#refresh();
  }

  /** running: an answer is being written here. */
  setRunning(running) {
    if (this.running === running && this.button.firstChild) return;
    this.running = running;
    this.#refresh();
  }

  /** How much of the model's context the conversation takes, in tokens; null where it is not known. */
  setContext(used, longest) {
    this.context.textContent =
      used && longest ? `${used.toLocaleString("en")} of ${longest.toLocaleString("en")} tokens` : "";
    this.context.classList.toggle("full", Boolean(used && longest && used > 0.9 * longest));
  }

  /** Put a text in, to be sent or changed. */
  setText(text) {
    this.field.value = text;
    this.#refresh();
    this.field.focus();
  }

  focus() {
    this.#refresh(); // its height is known only where it is shown
    this.field.focus({ preventScroll: true });
  }

  #submit(event) {
    event.preventDefault();
    if (this.running) {
      this.callbacks.onstop();
      return;
    }
    const text = this.field.value.trim();
    if (!text) return;
    this.field.value = "";
    this.#refresh();
    this.callbacks.onsend(text);
  }

  #key(event) {
    if (isComposing(event)) return;
    if (event.key === "Enter" && !event.shiftKey) {
      event.preventDefault();
      if (!this.running) this.#submit(event);
    } else if (event.key === "ArrowUp" && this.field.value === "") {
      event.preventDefault();
      this.callbacks.onlast();
    }
  }

  #refresh() {
    fit(this.field);
    const [name, label] = this.running ? ["stop", "Stop"] : ["send", "Send"];
    this.button.replaceChildren(icon(name));
    this.button.setAttribute("aria-label", label);
    this.button.title = this.running ? "Stop (Escape)" : "Send (Enter)";
    this.button.classList.toggle("stop", this.running);
    this.button.disabled = !this.running && this.field.value.trim() === "";
  }
}
