// Conversations kept in the browser: IndexedDB, which all tabs share, or memory where the browser has closed it.
// Choices: localStorage.

import { merge, stateOf } from "./merge.js";

const STORE = "conversations";
const NEVER = { revisions: new Map() }; // the state of what was never kept

export class Store {
  #database = null;
  #closed = false;
  #memory = new Map();
  #states = new Map(); // conversation id -> what it was like when this tab last read or wrote it
  #channel = null;
  #told = Promise.resolve();

  /** False where nothing will outlive the page. */
  lasting = false;

  /** Called with the id of a conversation that another tab wrote or deleted, one at a time. */
  onforeign = async () => {};

  async open() {
    try {
      await this.#connect();
      this.#channel = new BroadcastChannel("octavo");
      this.#channel.onmessage = ({ data }) => this.#hear(data);
      this.lasting = true;
    } catch {
      this.#database = null;
    }
    return this;
  }

  async #connect() {
    if (this.#database && !this.#closed) return;
    const opening = indexedDB.open("octavo", 1);
    opening.onupgradeneeded = () => opening.result.createObjectStore(STORE, { keyPath: "id" });
    this.#database = await done(opening);
    this.#closed = false;
    // by the browser: the site's data were deleted, or Safari has ended the process that keeps them
    this.#database.onclose = () => {
      this.#closed = true;
      this.#states.clear(); // what is there no more was not deleted by a tab
    };
  }

  /** Every conversation, the latest first. */
  async all() {
    const found = this.#database ? await done(this.#begin("readonly").getAll()) : [...this.#memory.values()];
    for (const each of found) this.#states.set(each.id, stateOf(each));
    return found.sort((a, b) => b.updated - a.updated);
  }

  /** Bring what is kept into `mine`, or make it anew where that is null; null where nothing is kept. */
  async read(id, mine) {
    await this.#connect();
    const kept = await done(this.#begin("readonly").get(id));
    if (!kept) return null;
    if (mine) merge(mine, kept, this.#states.get(id) ?? NEVER);
    this.#states.set(id, stateOf(kept));
    return mine ?? kept;
  }

  /** Keep it, with other tabs' changes brought into it; false where one of them deleted it. Rejects without room. */
  async put(conversation) {
    if (this.#database) return this.#merged(conversation);
    this.#memory.set(conversation.id, conversation);
    return true;
  }

  async remove(id) {
    if (!this.#database) return this.#memory.delete(id);
    await this.#write((store) => done(store.delete(id)));
    this.#channel.postMessage(id);
  }

  async #merged(conversation) {
    const { id } = conversation;
    let state = null;
    await this.#write(async (store) => {
      const kept = await done(store.get(id));
      if (!kept && this.#states.has(id)) return;
      if (kept) merge(conversation, kept, this.#states.get(id) ?? NEVER);
      state = stateOf(conversation);
      await done(store.put(conversation));
    });
    if (!state) return false;
    this.#states.set(id, state);
    this.#channel.postMessage(id);
    return true;
  }

  // until it is on its way to the disk: a request that succeeded may still be undone for want of room
  async #write(act) {
    await this.#connect();
    const store = this.#begin("readwrite");
    await Promise.all([act(store), ended(store.transaction)]);
  }

  #begin(mode) {
    return this.#database.transaction(STORE, mode).objectStore(STORE);
  }

  #hear(id) {
    this.#told = this.#told.then(() => this.onforeign(id)).catch(console.error);
  }
}

function done(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

function ended(transaction) {
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve();
    transaction.onabort = () => reject(transaction.error);
  });
}

/** A choice that was kept, else `fallback`. */
export function recall(name, fallback) {
  try {
    return JSON.parse(localStorage.getItem(`octavo.${name}`)) ?? fallback;
  } catch {
    return fallback;
  }
}

/** Keep a choice; where storage is closed it lasts as long as the page. */
export function remember(name, value) {
  try {
    localStorage.setItem(`octavo.${name}`, JSON.stringify(value));
  } catch {
    // nothing to be done
  }
}
