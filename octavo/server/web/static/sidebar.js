// The list of conversations, and what concerns all of them: find, export, import, colours, shortcuts.

import { h, icon, iconButton, mark } from "./dom.js";
import { titleOf } from "./tree.js";

const DAY = 86_400_000;

export class Sidebar {
  /** actions: create, open(conversation), rename, remove, exportAll, importFile(file), theme, shortcuts, view(name). */
  constructor(actions) {
    this.actions = actions;
    this.conversations = [];
    this.current = null;
    this.busy = new Set();
    this.find = h("input", {
      type: "search",
      placeholder: "Search",
      "aria-label": "Search conversations",
      oninput: () => this.#draw(),
    });
    this.create = h(
      "button",
      { type: "button", class: "new", onclick: actions.create },
      icon("plus"),
      "New conversation",
    );
    this.list = h("nav", { class: "conversations", "aria-label": "Conversations" });
    this.file = h("input", {
      type: "file",
      accept: "application/json,.json",
      class: "unseen",
      tabIndex: -1,
      "aria-hidden": "true",
      onchange: () => this.#import(),
    });
    this.element = h(
      "aside",
      { class: "sidebar", id: "sidebar", "aria-label": "Conversations" },
      h(
        "header",
        {},
        h("a", { class: "brand", href: "#/" }, mark(), "Octavo"),
        iconButton("close", "Close the list", actions.close, { class: "icon-button narrow-only" }),
      ),
      this.create,
      h("label", { class: "find" }, icon("search"), this.find),
      this.list,
      h(
        "footer",
        {},
        iconButton("download", "Export all conversations", actions.exportAll),
        iconButton("upload", "Import conversations", () => this.file.click()),
        iconButton("theme", "Colours", actions.theme, { id: "theme" }),
        iconButton("keys", "Keyboard", actions.shortcuts),
        this.file,
      ),
    );
  }

  /** busy: ids of conversations in which an answer is being written. */
  update({ conversations, current, busy }) {
    Object.assign(this, { conversations, current, busy });
    this.#draw();
  }

  #draw() {
    const words = this.find.value.trim().toLowerCase();
    const shown = this.conversations.filter((each) => !words || matches(each, words));
    const groups = new Map();
    for (const each of shown) {
      const group = age(each.updated);
      if (!groups.has(group)) groups.set(group, []);
      groups.get(group).push(each);
    }
    const empty = words ? "Nothing found." : "Your conversations are kept here, in this browser.";
    const parts = [...groups].flatMap(([name, list]) => [
      h("h2", {}, name),
      h(
        "ul",
        {},
        list.map((each) => this.#row(each)),
      ),
    ]);
    const focused = this.#focused();
    this.list.replaceChildren(...(parts.length ? parts : [h("p", { class: "fine" }, empty)]));
    if (!focused) return;
    const row = this.list.querySelector(`[data-id="${focused.id}"]`);
    (row?.children[focused.place] ?? this.create).focus({ preventScroll: true });
  }

  // where the keyboard is in the list, which is drawn anew
  #focused() {
    const row = this.list.contains(document.activeElement) ? document.activeElement.closest("li") : null;
    return row && { id: row.dataset.id, place: [...row.children].indexOf(document.activeElement) };
  }

  #row(conversation) {
    const current = conversation.id === this.current?.id;
    const title = titleOf(conversation);
    return h(
      "li",
      { class: current ? "current" : null, "data-id": conversation.id },
      h(
        "a",
        { href: `#/c/${conversation.id}`, "aria-current": current ? "page" : null, title, dir: "auto" },
        this.busy.has(conversation.id) ? h("i", { class: "pulse", role: "img", "aria-label": "being answered" }) : null,
        title,
      ),
      iconButton("edit", `Rename ${title}`, () => this.actions.rename(conversation)),
      iconButton("trash", `Delete ${title}`, () => this.actions.remove(conversation)),
    );
  }

  #import() {
    const [file] = this.file.files;
    this.file.value = "";
    if (file) this.actions.importFile(file);
  }
}

function matches(conversation, words) {
  if (titleOf(conversation).toLowerCase().includes(words)) return true;
  return Object.values(conversation.nodes).some((node) => node.content.toLowerCase().includes(words));
}

function age(time) {
  const midnight = new Date().setHours(0, 0, 0, 0);
  if (time >= midnight) return "Today";
  if (time >= midnight - DAY) return "Yesterday";
  return time >= midnight - 6 * DAY ? "This week" : "Earlier";
}
