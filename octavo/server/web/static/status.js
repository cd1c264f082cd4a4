// How the server is, asked now and then while the page is looked at: a dot, a word, and a strip where it needs one.

import { readiness } from "./api.js";
import { h } from "./dom.js";

const WELL_MS = 10_000;
const UNWELL_MS = 2_000;

const WORDS = {
  ready: "Ready",
  loading: "Loading",
  draining: "Shutting down",
  paused: "Paused",
  sleeping: "Asleep",
  corrupted: "Not to be trusted",
  restarting: "Starting again",
  dead: "Engine ended",
  gone: "No answer",
};

export class Status {
  /** onready(options of a call): the server is found ready after it was not, or after nobody looked at the page. */
  constructor({ onready }) {
    this.onready = onready;
    this.status = null;
    this.timer = 0;
    this.word = h("span");
    this.dot = h("span", { class: "status", role: "status" }, h("i"), this.word);
    this.strip = h("div", { class: "strip", role: "alert", hidden: true });
    document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(this.timer) : this.check(true)));
  }

  /** Ask now, and again later. unseen: nobody looked meanwhile; it may have been started again, with another model. */
  async check(unseen = false) {
    clearTimeout(this.timer);
    const told = await readiness();
    const before = this.status;
    this.status = told.status;
    this.#show(told);
    if (told.status === "ready" && (unseen || before !== "ready")) this.onready({ quiet: before === "ready" });
    clearTimeout(this.timer);
    if (!document.hidden) this.timer = setTimeout(() => this.check(), told.status === "ready" ? WELL_MS : UNWELL_MS);
  }

  #show({ status, loading }) {
    const word = WORDS[status] ?? status;
    this.word.textContent = word;
    this.dot.dataset.status = status;
    this.strip.hidden = status === "ready";
    this.strip.dataset.status = status;
    if (status === "ready") return;
    const share = loading?.total ? loading.done / loading.total : null;
    const percent = share === null ? "" : ` (${Math.round(100 * share)} %)`;
    const words = {
      loading: `The model is loading${loading?.what ? `: ${loading.what}` : ""}${percent}. What you send is answered when it is there.`,
      gone: "The server does not answer. It is asked again every two seconds; nothing of yours is lost.",
      draining: "The server is shutting down: it takes nothing new.",
      paused: "The server is paused: it takes nothing new until it is resumed.",
      sleeping: "The model has left the device to make room: it answers when it is woken.",
      corrupted: "The model no longer answers as it did at the start: do not trust it until the server was started again.",
      restarting: "The engine is starting again after a failure.",
      dead: "The engine has ended and does not come back: the server must be started again.",
    };
    const bar = share === null ? null : h("progress", { max: 1, value: share, "aria-label": "Loading" });
    this.strip.replaceChildren(...[h("span", {}, words[status] ?? word), bar].filter(Boolean));
  }
}
