// The panel at the side: system prompt, sampling controls and tools of the conversation that is open.

import { h, iconButton } from "./dom.js";
import { CONTROLS, toolsFault } from "./parameters.js";

const FIRST_VALUE = {
  temperature: 0.7,
  top_p: 0.9,
  top_k: 40,
  min_p: 0.05,
  repetition_penalty: 1.1,
  presence_penalty: 0,
  frequency_penalty: 0,
};

export class SettingsPanel {
  /** onchange(settings): after each change; onclose(). */
  constructor({ onchange, onclose }) {
    this.onchange = onchange;
    this.settings = {};
    this.body = h("div", { class: "panel-body" });
    this.element = h(
      "aside",
      { class: "panel", id: "settings", "aria-label": "Settings of this conversation", hidden: true },
      h("header", {}, h("h2", {}, "Settings"), iconButton("close", "Close settings", onclose)),
      this.body,
    );
  }

  /** Show these settings; they are changed in place. */
  show(settings) {
    this.settings = settings;
    this.shown = JSON.stringify(settings);
    const system = this.#text("system", "System prompt", "What the model should know and how it should answer.", 4);
    const tools = this.#text("tools", "Tools", '[{"type": "function", "function": {"name": …}}]', 3);
    const fault = h("p", { class: "fine fault", role: "alert" });
    const check = () => (fault.textContent = toolsFault(settings.tools) ?? "");
    tools.querySelector("textarea").addEventListener("input", check);
    check();
    const reset = h(
      "button",
      { type: "button", class: "quiet", onclick: () => this.#reset() },
      "All to the model's defaults",
    );
    this.body.replaceChildren(
      system,
      h("h3", {}, "Sampling"),
      ...CONTROLS.map((control) => this.#control(control)),
      reset,
      h("h3", {}, "Functions"),
      tools,
      h("p", { class: "fine" }, "A JSON list as in the API. Calls are shown; you give their results."),
      fault,
    );
  }

  /** Show them again where another tab has changed them; a field that is being written in stays as it is. */
  refresh() {
    if (JSON.stringify(this.settings) !== this.shown) this.show(this.settings);
  }

  #text(name, label, placeholder, rows) {
    const oninput = (event) => this.#set(name, event.target.value);
    const field = h("textarea", {
      id: `setting-${name}`,
      rows,
      dir: "auto",
      placeholder,
      value: this.settings[name] ?? "",
      oninput,
      spellcheck: name === "system" ? null : "false",
    });
    return h("div", { class: "setting" }, h("label", { for: field.id }, label), field);
  }

  #control(control) {
    const { name, label, least, most, step, about } = control;
    const id = `setting-${name}`;
    const number = h("input", {
      type: "number",
      id,
      min: least,
      max: most,
      step,
      placeholder: "default",
      inputmode: "decimal",
      "aria-describedby": `${id}-about`,
    });
    const range =
      most === null
        ? null
        : h("input", { type: "range", min: least, max: most, step, "aria-label": `${label}, slider` });
    const undo = h(
      "button",
      { type: "button", class: "undo", title: "The model's default", "aria-label": `${label}: the model's default` },
      "×",
    );
    const show = () => {
      const value = this.settings[name];
      const set = typeof value === "number";
      number.value = set ? String(value) : "";
      if (range) range.value = String(set ? value : (FIRST_VALUE[name] ?? least));
      row.classList.toggle("set", set);
      undo.disabled = !set;
    };
    const take = (text) => {
      const value = text.trim() === "" ? NaN : Number(text);
      const good =
        Number.isFinite(value) &&
        value >= least &&
        (most === null || value <= most) &&
        (step !== 1 || Number.isInteger(value));
      const given = text.trim() !== "" || number.validity.badInput; // "1e", or "0,5" in Firefox, reads as ""
      number.setAttribute("aria-invalid", String(given && !good));
      this.#set(name, good ? value : undefined);
      return good;
    };
    number.addEventListener("input", () => {
      const good = take(number.value);
      if (good && range) range.value = number.value;
      row.classList.toggle("set", good);
      undo.disabled = !good;
    });
    range?.addEventListener("input", () => {
      take(range.value);
      show();
    });
    undo.addEventListener("click", () => {
      take("");
      show();
      number.focus();
    });
    const row = h(
      "div",
      { class: "setting control" },
      h("label", { for: id }, label),
      h("span", { class: "value" }, number, undo),
      range,
      h("p", { class: "fine", id: `${id}-about` }, about),
    );
    show();
    return row;
  }

  #set(name, value) {
    if (value === undefined || value === "") delete this.settings[name];
    else this.settings[name] = value;
    this.shown = JSON.stringify(this.settings);
    this.onchange(this.settings);
  }

  #reset() {
    for (const { name } of CONTROLS) delete this.settings[name];
    this.onchange(this.settings);
    this.show(this.settings);
  }
}
