// The conversation that is open: its messages, the field below them, and what the reader may do with them.

import { announce, h, icon, mark } from "./dom.js";
import { Composer } from "./composer.js";
import { confirmed } from "./dialogs.js";
import { Generation } from "./generate.js";
import { MessageView } from "./message.js";
import { addNode, removeNode, showBranch, shownPath, siblings } from "./tree.js";

const REST = 2; // times the cost of a drawing until the next
const NEAR = 48; // pixels from the end within which the view follows an answer

const SUGGESTIONS = [
  ["Explain", "how a transformer turns a prompt into its next word"],
  ["Write", "a Python function that merges two sorted lists, with a test"],
  ["Compare", "TCP and UDP in a table of four rows"],
  ["Draft", "a short and friendly note that declines an invitation"],
];

export class ChatView {
  /** app: {model(), longest(), save(conversation, now), learnModels()}; conversations stay the caller's. */
  constructor(app) {
    this.app = app;
    this.conversation = null;
    this.generations = new Map(); // conversation id -> Generation
    this.views = new Map(); // node id -> MessageView
    this.following = true; // the end is kept in view, until the reader scrolls up
    this.lastTop = 0;
    this.frame = 0;
    this.cost = 0; // milliseconds of the last drawing: the next one waits a few times as long
    this.list = h("div", { class: "messages" });
    this.scroller = h(
      "div",
      { class: "scroller", tabindex: "-1", onscroll: () => this.#scrolled(), onwheel: (event) => this.#wheel(event) },
      this.list,
    );
    this.toEnd = h(
      "button",
      { type: "button", class: "to-end", "aria-label": "To the end", hidden: true, onclick: () => this.#follow() },
      icon("down"),
    );
    this.composer = new Composer({
      onsend: (text) => this.send(text),
      onstop: () => this.stop(),
      onlast: () => this.editLast(),
    });
    this.element = h(
      "section",
      { class: "chat", "aria-label": "Chat" },
      this.scroller,
      h("div", { class: "dock" }, this.toEnd, this.composer.element),
    );
  }

  /** Show a conversation. */
  open(conversation) {
    this.conversation = conversation;
    this.views.clear();
    this.list.replaceChildren();
    this.following = true;
    this.#draw();
    this.composer.focus();
  }

  /** The answer being written in the conversation that is open, or null. */
  get generation() {
    return this.generations.get(this.conversation?.id) ?? null;
  }

  send(text) {
    const { conversation } = this;
    if (this.generation) return;
    const node = addNode(conversation, conversation.leaf, { role: "user", content: text });
    this.#follow();
    this.#answer(node);
  }

  /** Stop what is being written here; false where nothing is. */
  stop() {
    const { generation } = this;
    generation?.stop();
    return generation !== null;
  }

  /** Stop and forget a conversation's answer: it is about to be deleted. */
  drop(id) {
    this.generations.get(id)?.stop();
    this.generations.delete(id);
  }

  editLast() {
    const last = shownPath(this.conversation).findLast((node) => node.role === "user");
    if (last && !this.generation) this.views.get(last.id)?.edit();
  }

  #answer(parent) {
    this.#start(addNode(this.conversation, parent.id, { role: "assistant" }), false);
  }

  #start(node, goOn) {
    const { conversation } = this;
    const generation = new Generation(conversation, node, {
      model: this.app.model(),
      goOn,
      onchange: () => this.#changed(generation),
    });
    this.generations.set(conversation.id, generation);
    for (const view of this.views.values()) view.settled = false; // what may be done with them changes now
    this.app.save(conversation, true);
    if (matchMedia("(hover: hover)").matches) this.composer.focus(); // the button that was pressed goes away
    generation.run().then(() => {
      if (this.generations.get(conversation.id) !== generation) return;
      this.generations.delete(conversation.id);
      this.app.save(conversation, true);
      if (conversation === this.conversation) this.#draw();
      if (node.error?.status === 404 && node.error.param === "model") this.app.learnModels();
      announce(node.error ? `Failed: ${node.error.message}` : "The answer is there");
    });
  }

  #changed(generation) {
    if (this.generations.get(generation.conversation.id) !== generation) return; // dropped
    this.app.save(generation.conversation, false);
    if (generation.conversation !== this.conversation || this.frame) return;
    const draw = () => {
      this.frame = 0;
      const begun = performance.now();
      this.#draw();
      this.cost = performance.now() - begun;
    };
    this.frame = setTimeout(() => requestAnimationFrame(draw), this.cost * REST);
  }

  #actions() {
    const { conversation } = this;
    const free =
      (act) =>
      (...values) => {
        if (this.generations.has(conversation.id)) return false;
        act(...values);
        return true;
      };
    const shown = () => {
      this.app.save(conversation, true);
      this.#draw();
    };
    return {
      edit: free((node, text) => {
        const changed = addNode(conversation, node.parent, { role: "user", content: text });
        this.#answer(changed);
      }),
      again: free((node) => this.#again(node)),
      goOn: free((node) => {
        delete node.finish;
        this.#start(node, true);
      }),
      show: free((node) => {
        showBranch(conversation, node);
        shown();
      }),
      results: free((node, texts) => this.#results(node, texts)),
      hurry: () => this.generation?.hurry(),
      remove: free(async (node) => {
        if (!(await confirmed("Delete this message and all that follows it?", "Delete"))) return;
        removeNode(conversation, node);
        shown();
      }),
    };
  }

  // an answer that failed before it began is replaced, any other gets a sibling
  #again(node) {
    const { conversation } = this;
    if (node.error && !node.content && !node.reasoning && !node.toolCalls?.length) removeNode(conversation, node);
    const parent = conversation.nodes[node.parent];
    conversation.leaf = parent.id;
    this.#answer(parent);
  }

  #results(node, texts) {
    let last = node;
    node.toolCalls.forEach((call, i) => {
      last = addNode(this.conversation, last.id, { role: "tool", content: texts[i], toolCallId: call.id });
    });
    this.#answer(last);
  }

  #draw() {
    const { conversation, generation } = this;
    const path = shownPath(conversation);
    this.element.classList.toggle("empty", path.length === 0);
    if (path.length === 0) {
      this.views.clear();
      this.list.replaceChildren(this.#welcome());
    } else {
      this.#arrange(path, generation);
    }
    this.composer.setRunning(generation !== null);
    const stats = path.findLast((node) => node.stats?.prompt)?.stats;
    this.composer.setContext(stats ? stats.prompt + (stats.tokens ?? 0) : null, this.app.longest());
    if (this.following) this.#toBottom();
  }

  #arrange(path, generation) {
    const shown = new Set(path.map((node) => node.id));
    for (const [id, view] of this.views) {
      if (shown.has(id)) continue;
      view.element.remove();
      this.views.delete(id);
    }
    this.list.querySelector(".welcome")?.remove();
    const growing = generation?.node.id;
    path.forEach((node, i) => {
      let view = this.views.get(node.id);
      // while an answer grows, the messages before it stay as they are
      if (view && growing && node.id !== growing && view.settled) return;
      if (!view) {
        view = new MessageView(node, this.#actions());
        this.views.set(node.id, view);
        this.list.insertBefore(view.element, this.list.children[i] ?? null);
      }
      view.settled = node.id !== growing;
      view.update(this.#context(node, path, generation));
    });
  }

  #context(node, path, generation) {
    const own = generation?.node === node ? generation : null;
    return {
      siblings: siblings(this.conversation, node),
      generation: own,
      busy: generation !== null,
      last: path.at(-1) === node,
      toolName: node.role === "tool" ? toolName(path, node) : null,
    };
  }

  #welcome() {
    const name = this.app.model();
    const choose =
      ([verb, rest]) =>
      () =>
        this.composer.setText(`${verb} ${rest}`);
    return h(
      "div",
      { class: "welcome" },
      mark(),
      h("h1", {}, "What shall we begin with?"),
      h(
        "p",
        {},
        name
          ? `${shortName(name)} runs on this server. Nothing you write leaves it.`
          : "Nothing you write leaves this server.",
      ),
      h(
        "div",
        { class: "suggestions" },
        SUGGESTIONS.map((each) =>
          h("button", { type: "button", onclick: choose(each) }, h("b", {}, each[0]), ` ${each[1]}`),
        ),
      ),
    );
  }

  /** The model or its state became known: what stands there is drawn again. */
  refresh() {
    if (this.conversation && !this.generation) this.#draw();
  }

  #toBottom() {
    this.scroller.scrollTop = this.scroller.scrollHeight;
    this.toEnd.hidden = true;
  }

  #follow() {
    this.following = true;
    this.#toBottom();
  }

  #wheel(event) {
    if (event.deltaY < 0 && this.scroller.scrollHeight > this.scroller.clientHeight) this.following = false;
  }

  #scrolled() {
    const { scrollTop, scrollHeight, clientHeight } = this.scroller;
    const left = scrollHeight - scrollTop - clientHeight;
    if (left < 2 || (left < NEAR && scrollTop > this.lastTop)) this.following = true;
    else if (scrollTop < this.lastTop || left >= NEAR) this.following = false;
    this.lastTop = scrollTop;
    this.toEnd.hidden = left < NEAR;
  }
}

function toolName(path, node) {
  const calls = path.flatMap((other) => other.toolCalls ?? []);
  return calls.find((call) => call.id === node.toolCallId)?.name ?? "a tool";
}

/** The last part of a path or hub id. */
export function shortName(name) {
  return name.split("/").filter(Boolean).at(-1) ?? name;
}
