// Text as it comes from the network in; the data of whole server-sent events out.

export class EventParser {
  #rest = "";
  #data = [];

  /** The events that this text completes, in order. */
  push(text) {
    const found = [];
    this.#rest += text;
    let start = 0;
    for (;;) {
      const end = lineEnd(this.#rest, start);
      if (!end) break;
      this.#line(this.#rest.slice(start, end[0]), found);
      start = end[1];
    }
    this.#rest = this.#rest.slice(start);
    return found;
  }

  #line(line, found) {
    if (line === "") {
      if (this.#data.length) found.push(this.#data.join("\n"));
      this.#data = [];
    } else if (line.startsWith("data:")) {
      this.#data.push(line.slice(line[5] === " " ? 6 : 5));
    } // comments and other fields say nothing that is used here
  }
}

// [where the line ends, where the next begins]; null where its end has not come. A last \r may have its \n to come.
function lineEnd(text, start) {
  for (let at = start; at < text.length; at++) {
    if (text[at] === "\n") return [at, at + 1];
    if (text[at] === "\r" && at + 1 < text.length) return [at, at + (text[at + 1] === "\n" ? 2 : 1)];
  }
  return null;
}
