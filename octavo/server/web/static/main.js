// The page put together: views, what they share, addresses (#/, #/c/ID, #/engine) and keys.

import { models, onKeyNeeded } from "./api.js";
import { ChatView, shortName } from "./chat.js";
import { askKey, askTitle, confirmed, showShortcuts, tell } from "./dialogs.js";
import { h, icon, iconButton, isComposing } from "./dom.js";
import { EngineView } from "./engine.js";
import { SettingsPanel } from "./settings.js";
import { Sidebar } from "./sidebar.js";
import { Status } from "./status.js";
import { recall, remember, Store } from "./store.js";
import { endHalfAnswers, exportAll, importAll, newConversation, titleOf } from "./tree.js";

const SAVE_MS = 1500; // between two savings of an answer that grows
const THEMES = ["auto", "light", "dark"];

class Page {
  constructor(store, conversations) {
    this.store = store;
    this.conversations = conversations;
    this.current = null;
    this.names = [];
    this.longest = null;
    this.saved = new Map(); // conversation id -> when
    this.unkept = new Set(); // ids of conversations for which the browser had no room
    this.chat = new ChatView({
      model: () => this.model(),
      longest: () => this.longest,
      save: (...values) => this.save(...values),
      learnModels: () => this.learnModels({ quiet: true }),
    });
    this.engine = new EngineView();
    this.settings = new SettingsPanel({
      onchange: () => this.settingsChanged(),
      onclose: () => this.toggleSettings(false),
    });
    this.sidebar = new Sidebar(this.sidebarActions());
    this.status = new Status({ onready: (options) => this.learnModels(options) });
    this.build();
  }

  sidebarActions() {
    return {
      create: () => this.create(),
      close: () => this.toggleSidebar(false),
      rename: (conversation) => this.rename(conversation),
      remove: (conversation) => this.remove(conversation),
      exportAll: () => this.exportAll(),
      importFile: (file) => this.importFile(file),
      theme: () => this.nextTheme(),
      shortcuts: showShortcuts,
    };
  }

  build() {
    this.title = h("h1", { class: "title", dir: "auto" });
    this.modelName = h("span", { class: "model" });
    this.tabs = [
      h("a", { href: "#/", "data-view": "chat" }, icon("chat"), "Chat"),
      h("a", { href: "#/engine", "data-view": "engine" }, icon("chart"), "Engine"),
    ];
    const menu = iconButton("menu", "Conversations", () => this.toggleSidebar(), {
      class: "icon-button menu",
      "aria-controls": "sidebar",
    });
    this.settingsButton = iconButton("sliders", "Settings", () => this.toggleSettings(), {
      "aria-controls": "settings",
      "aria-expanded": "false",
    });
    this.shade = h("div", { class: "shade", onclick: () => this.toggleSidebar(false) });
    const bar = h(
      "header",
      { class: "bar" },
      h("div", { class: "where" }, menu, this.title),
      h("nav", { class: "tabs", "aria-label": "View" }, this.tabs),
      h("div", { class: "server" }, this.modelName, this.status.dot, this.settingsButton),
    );
    this.loss = h(
      "div",
      { class: "strip fault", role: "alert", hidden: true },
      "The browser did not keep what was written last: its storage may be full. Delete what you do not need, or export your conversations before you close this tab.",
      h("button", { type: "button", class: "quiet", onclick: () => this.exportAll() }, "Export all conversations"),
    );
    this.main = h("main", {}, this.chat.element, this.engine.element);
    document.body.replaceChildren(
      h(
        "button",
        { type: "button", class: "skip primary", onclick: () => this.chat.composer.focus() },
        "To the message field",
      ),
      this.sidebar.element,
      this.shade,
      h("div", { class: "middle" }, bar, this.status.strip, this.loss, this.main),
      this.settings.element,
      h("div", { id: "announcer", class: "unseen", role: "status" }),
    );
    if (!this.store.lasting)
      this.sidebar.element
        .querySelector("footer")
        .before(h("p", { class: "fine" }, "This browser keeps nothing for this page: conversations end with the tab."));
    this.showTheme(recall("theme.name", "auto"));
    if (recall("settings.open", false) && matchMedia("(min-width: 75rem)").matches) this.toggleSettings(true);
  }

  start() {
    addEventListener("hashchange", () => this.route());
    addEventListener("keydown", (event) => this.key(event));
    addEventListener("pagehide", () => this.current && this.save(this.current, true));
    this.store.onforeign = (id) => this.learnForeign(id);
    this.route();
    this.status.check();
  }

  route() {
    const [, view = "", id = ""] = location.hash.split("/");
    const engine = view === "engine";
    const found = view === "c" ? this.conversations.find((each) => each.id === id) : null;
    document.body.dataset.view = engine ? "engine" : "chat";
    for (const tab of this.tabs) {
      const chosen = (tab.dataset.view === "engine") === engine;
      if (chosen) tab.setAttribute("aria-current", "page");
      else tab.removeAttribute("aria-current");
    }
    this.engine.setShown(engine);
    if (!engine) this.open(found ?? this.fresh());
    this.toggleSidebar(false);
    this.refresh();
  }

  fresh() {
    const isNew = this.current && !this.conversations.includes(this.current);
    return isNew ? this.current : newConversation(recall("settings", {}));
  }

  open(conversation) {
    if (conversation !== this.current) {
      this.current = conversation;
      this.settings.show(conversation.settings);
      this.chat.open(conversation);
    } else {
      this.chat.composer.focus();
    }
    this.tabs[0].setAttribute("href", this.conversations.includes(conversation) ? `#/c/${conversation.id}` : "#/");
  }

  create() {
    this.current = null;
    if (location.hash !== "#/") history.pushState(null, "", "#/");
    this.route();
  }

  refresh() {
    const shown = document.body.dataset.view === "engine" ? "Engine" : titleOf(this.current);
    this.title.textContent = shown;
    document.title = `${shown} · Octavo`;
    this.sidebar.update({
      conversations: this.conversations,
      current: this.current,
      busy: new Set(this.chat.generations.keys()),
    });
  }

  /** now: not only when the last saving is some time ago. */
  save(conversation, now) {
    const last = this.saved.get(conversation.id) ?? 0;
    if (!now && Date.now() - last < SAVE_MS) return;
    if (!Object.keys(conversation.nodes).length && !this.conversations.includes(conversation)) return;
    this.saved.set(conversation.id, Date.now());
    if (!this.conversations.includes(conversation)) {
      this.conversations.push(conversation);
      history.replaceState(null, "", `#/c/${conversation.id}`);
      this.tabs[0].setAttribute("href", `#/c/${conversation.id}`);
    }
    this.conversations.sort((a, b) => b.updated - a.updated);
    this.keep(conversation);
    if (now) this.refresh();
  }

  async keep(conversation) {
    try {
      if (!(await this.store.put(conversation))) this.forget(conversation);
      this.unkept.delete(conversation.id);
      this.settings.refresh();
    } catch (error) {
      this.unkept.add(conversation.id);
      console.error("this conversation could not be kept", error);
    }
    this.loss.hidden = this.unkept.size === 0;
  }

  /** Another tab wrote or deleted this conversation. */
  async learnForeign(id) {
    const mine = this.conversations.find((each) => each.id === id);
    const found = await this.store.read(id, mine);
    if (!found && mine) this.forget(mine);
    if (!found) return;
    if (!mine) this.conversations.push(found);
    this.conversations.sort((a, b) => b.updated - a.updated);
    this.refresh();
    this.settings.refresh();
    if (found === this.current) this.chat.refresh();
  }

  settingsChanged() {
    const { tools: _, ...kept } = this.current.settings; // tools belong to one conversation
    remember("settings", kept);
    this.save(this.current, true);
  }

  async rename(conversation) {
    const title = await askTitle(titleOf(conversation));
    if (title === null) return;
    conversation.title = title;
    this.save(conversation, true);
  }

  async remove(conversation) {
    if (!(await confirmed(`Delete “${titleOf(conversation)}”?`, "Delete"))) return;
    this.chat.drop(conversation.id);
    try {
      await this.store.remove(conversation.id);
    } catch (error) {
      await tell("It was not deleted", error.message);
      return;
    }
    this.forget(conversation);
    for (const each of this.conversations) if (this.unkept.has(each.id)) this.keep(each);
  }

  forget(conversation) {
    this.chat.drop(conversation.id);
    this.conversations = this.conversations.filter((each) => each !== conversation);
    this.unkept.delete(conversation.id);
    this.loss.hidden = this.unkept.size === 0;
    if (conversation === this.current && document.body.dataset.view === "chat") this.create();
    else if (conversation === this.current) this.open(newConversation(recall("settings", {})));
    this.refresh();
  }

  exportAll() {
    download("octavo-conversations.json", exportAll(this.conversations));
  }

  async importFile(file) {
    try {
      const found = importAll(await file.text());
      this.conversations.push(...found);
      for (const conversation of found) this.keep(conversation);
      this.conversations.sort((a, b) => b.updated - a.updated);
      this.refresh();
    } catch (error) {
      await tell("Nothing was imported", error.message);
    }
  }

  model() {
    return this.names[0] ?? null;
  }

  async learnModels(options) {
    const known = JSON.stringify([this.names, this.longest]);
    try {
      ({ names: this.names, longest: this.longest } = await models(options));
    } catch {
      return; // shown by the status, or the reader gave no key
    }
    if (JSON.stringify([this.names, this.longest]) === known) return;
    this.modelName.textContent = this.model() ? shortName(this.model()) : "";
    this.modelName.title = this.names.join(", ");
    this.chat.refresh();
  }

  toggleSettings(open = this.settings.element.hidden) {
    this.settings.element.hidden = !open;
    this.settingsButton.setAttribute("aria-expanded", String(open));
    remember("settings.open", open);
    if (open) this.settings.element.querySelector("textarea, input")?.focus({ preventScroll: true });
  }

  toggleSidebar(open = !document.body.classList.contains("with-sidebar")) {
    document.body.classList.toggle("with-sidebar", open);
    if (open && matchMedia("(hover: hover)").matches) this.sidebar.find.focus({ preventScroll: true }); // else a keyboard would rise
  }

  nextTheme() {
    const name = THEMES[(THEMES.indexOf(recall("theme.name", "auto")) + 1) % THEMES.length];
    remember("theme.name", name);
    this.showTheme(name);
  }

  showTheme(name) {
    if (name === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = name;
    const label = { auto: "Colours: as the system", light: "Colours: light", dark: "Colours: dark" }[name];
    const button = document.getElementById("theme");
    button.title = label;
    button.setAttribute("aria-label", label);
  }

  key(event) {
    if (document.querySelector("dialog[open]") || isComposing(event)) return;
    const mod = event.ctrlKey || event.metaKey;
    const typing = event.target instanceof Element && event.target.closest("input, textarea, select") !== null;
    const name = `${mod ? "mod+" : ""}${event.shiftKey && mod ? "shift+" : ""}${(event.key ?? "").toLowerCase()}`;
    const shortcuts = {
      "mod+shift+o": () => this.create(),
      "mod+k": () => this.openFind(),
      "mod+,": () => this.toggleSettings(),
      "mod+shift+e": () =>
        (location.hash = document.body.dataset.view === "engine" ? this.tabs[0].getAttribute("href") : "#/engine"),
      escape: () => this.escape(),
      "/": typing ? null : () => this.chat.composer.focus(),
      "?": typing ? null : () => showShortcuts(),
    };
    const act = shortcuts[name];
    if (!act) return;
    if (name !== "escape") event.preventDefault();
    act();
  }

  openFind() {
    this.toggleSidebar(true);
    this.sidebar.find.focus();
    this.sidebar.find.select();
  }

  escape() {
    if (document.body.classList.contains("with-sidebar") && matchMedia("(max-width: 52rem)").matches)
      this.toggleSidebar(false);
    else if (!this.chat.stop() && !this.settings.element.hidden) this.toggleSettings(false);
  }
}

function download(name, text) {
  const address = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  const link = h("a", { href: address, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

const store = await new Store().open();
const conversations = await store.all();
conversations.forEach(endHalfAnswers);
const page = new Page(store, conversations);
onKeyNeeded(askKey, () => page.learnModels({ quiet: true }));
page.start();
