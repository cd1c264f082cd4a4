// Conversations kept in the browser: IndexedDB, or memory where the browser has closed it. Choices: localStorage.

const STORE = "conversations";

export class Store {
  #database = null;
  #memory = new Map();

  /** False where nothing will outlive the page. */
  lasting = false;

  async open() {
    try {
      const opening = indexedDB.open("octavo", 1);
      opening.onupgradeneeded = () => opening.result.createObjectStore(STORE, { keyPath: "id" });
      this.#database = await done(opening);
      this.lasting = true;
    } catch {
      this.#database = null;
    }
    return this;
  }

  /** Every conversation, the latest first. */
  async all() {
    const found = this.#database ? await done(this.#begin("readonly").getAll()) : [...this.#memory.values()];
    return found.sort((a, b) => b.updated - a.updated);
  }

  async put(conversation) {
    if (this.#database) await done(this.#begin("readwrite").put(structuredClone(conversation)));
    else this.#memory.set(conversation.id, conversation);
  }

  async remove(id) {
    if (this.#database) await done(this.#begin("readwrite").delete(id));
    else this.#memory.delete(id);
  }

  #begin(mode) {
    return this.#database.transaction(STORE, mode).objectStore(STORE);
  }
}

function done(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
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
