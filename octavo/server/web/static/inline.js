// One paragraph's Markdown in; a list of {kind, ...} out. Time grows with the text's length, whatever it holds:
// a search that found no end is not made again.

const DEEPEST = 8;
const MARKS = [
  ["***", "strongem"],
  ["___", "strongem"],
  ["**", "strong"],
  ["__", "strong"],
  ["~~", "strike"],
  ["*", "em"],
  ["_", "em"],
];
const FORMULAS = [
  ["\\(", "\\)"],
  ["\\[", "\\]"],
  ["$$", "$$"],
];
const URL_HERE = /https?:\/\/[^\s<>"'`|]+/y;
const ENTITIES = { "&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&#39;": "'", "&nbsp;": "\u00a0" };
const MOST_LINK = 1000; // characters from [ to )
const isWord = (char) => char !== undefined && /[\p{L}\p{N}_]/u.test(char);
const isSpace = (char) => char === undefined || /\s/.test(char);

/** The address where it may be followed, else null: nothing but http, https and mailto. */
export function safeAddress(text) {
  const address = text.trim();
  if (!/^(?:https?:\/\/|mailto:)/i.test(address) || /[\s\u0000-\u001f]/.test(address)) return null;
  try {
    new URL(address);
    return address;
  } catch {
    return null;
  }
}

/** Nodes: text, break, code, formula {text}; strong, em, strike {inline}; link {address, inline}. */
export function parseInline(text, depth = 0) {
  return new Scanner(text, depth).run();
}

class Scanner {
  constructor(text, depth) {
    this.text = text;
    this.depth = depth;
    this.at = 0;
    this.plain = "";
    this.nodes = [];
    this.absent = new Set(); // closings that do not come any more
  }

  run() {
    while (this.at < this.text.length) {
      if (!this.special(this.text[this.at])) this.plain += this.text[this.at++];
    }
    this.flush();
    return this.nodes;
  }

  flush() {
    if (this.plain) this.nodes.push({ kind: "text", text: this.plain });
    this.plain = "";
  }

  put(node, next) {
    this.flush();
    this.nodes.push(node);
    this.at = next;
    return true;
  }

  special(char) {
    switch (char) {
      case "\n":
        return this.lineBreak();
      case "\\":
        return this.formula() || this.escape();
      case "$":
        return this.formula();
      case "`":
        return this.code();
      case "*":
      case "_":
      case "~":
        return this.marked();
      case "[":
        return this.link(this.at);
      case "!":
        return this.text[this.at + 1] === "[" && this.link(this.at + 1);
      case "<":
        return this.angle();
      case "&":
        return this.entity();
      case "h":
        return this.bareAddress();
      default:
        return false;
    }
  }

  lineBreak() {
    this.plain = this.plain.trimEnd();
    return this.put({ kind: "break" }, this.at + 1);
  }

  escape() {
    const next = this.text[this.at + 1];
    if (next === "\n") return this.put({ kind: "break" }, this.at + 2);
    if (next === undefined || !/[!-/:-@[-`{-~]/.test(next)) return false;
    this.plain += next;
    this.at += 2;
    return true;
  }

  // where `mark` comes next from `from`; -1 and remembered where it never does
  find(mark, from) {
    if (this.absent.has(mark)) return -1;
    const found = this.text.indexOf(mark, from);
    if (found < 0) this.absent.add(mark);
    return found;
  }

  formula() {
    for (const [open, close] of FORMULAS) {
      if (!this.text.startsWith(open, this.at)) continue;
      const end = this.find(close, this.at + open.length);
      if (end > 0)
        return this.put({ kind: "formula", text: this.text.slice(this.at, end + close.length) }, end + close.length);
    }
    return false;
  }

  code() {
    const marks = run(this.text, this.at, "`");
    const key = `code${marks}`;
    for (let end = this.absent.has(key) ? -1 : this.at + marks; end >= 0;) {
      end = this.text.indexOf("`", end);
      if (end < 0) break;
      const length = run(this.text, end, "`");
      if (length === marks) {
        const text = this.text.slice(this.at + marks, end).replace(/\n/g, " ");
        return this.put({ kind: "code", text: /^ .*[^ ].* $/.test(text) ? text.slice(1, -1) : text }, end + length);
      }
      end += length;
    }
    this.absent.add(key);
    this.plain += "`".repeat(marks);
    this.at += marks;
    return true;
  }

  marked() {
    if (this.depth >= DEEPEST) return false;
    for (const [mark, kind] of MARKS) {
      if (!this.text.startsWith(mark, this.at)) continue;
      const end = this.closing(mark);
      if (end < 0) continue;
      const inner = parseInline(this.text.slice(this.at + mark.length, end), this.depth + 1);
      const node =
        kind === "strongem" ? { kind: "strong", inline: [{ kind: "em", inline: inner }] } : { kind, inline: inner };
      return this.put(node, end + mark.length);
    }
    const length = run(this.text, this.at, this.text[this.at]);
    this.plain += this.text.slice(this.at, this.at + length);
    this.at += length;
    return true;
  }

  closing(mark) {
    const { text, at } = this;
    if (isSpace(text[at + mark.length])) return -1;
    if (mark[0] === "_" && isWord(text[at - 1])) return -1;
    if (this.absent.has(mark)) return -1;
    for (let end = at + mark.length + 1; end < text.length; end++) {
      if (text[end] === "\\") end++;
      else if (text[end] === "`") end = skipCode(text, end);
      else if (text.startsWith(mark, end) && this.closesHere(mark, end)) return end;
    }
    this.absent.add(mark);
    return -1;
  }

  closesHere(mark, end) {
    const { text } = this;
    if (isSpace(text[end - 1])) return false;
    if (mark[0] === "_" && isWord(text[end + mark.length])) return false;
    // a single * inside **strong** is not the end of the emphasis
    if (mark.length === 1) return text[end + 1] !== mark && text[end - 1] !== mark;
    return text[end + mark.length] !== mark[0] || mark.length === 3;
  }

  // images too: nothing is fetched for a model, so that they are shown as links
  link(open) {
    if (this.absent.has("](")) return false;
    const middle = matching(this.text, open, "[", "]");
    if (middle < 0 || this.text[middle + 1] !== "(") {
      if (this.text.indexOf("](", open) < 0) this.absent.add("](");
      return false;
    }
    const end = matching(this.text, middle + 1, "(", ")");
    if (end < 0) return false;
    const target = this.text
      .slice(middle + 2, end)
      .trim()
      .replace(/\s+(?:"[^"]*"|'[^']*')$/, "");
    const address = safeAddress(target.replace(/^<|>$/g, ""));
    const label = this.text.slice(open + 1, middle) || target;
    if (address === null || this.depth >= DEEPEST) return false;
    return this.put(
      { kind: "link", address, inline: parseInline(label, Math.max(this.depth + 1, DEEPEST - 2)) },
      end + 1,
    );
  }

  angle() {
    const end = this.find(">", this.at + 1);
    if (end < 0 || end - this.at > MOST_LINK) return false;
    const inner = this.text.slice(this.at + 1, end);
    if (/^br\s*\/?$/i.test(inner)) return this.put({ kind: "break" }, end + 1);
    const address = safeAddress(inner);
    return address !== null && this.put({ kind: "link", address, inline: [{ kind: "text", text: inner }] }, end + 1);
  }

  entity() {
    for (const [name, char] of Object.entries(ENTITIES)) {
      if (!this.text.startsWith(name, this.at)) continue;
      this.plain += char;
      this.at += name.length;
      return true;
    }
    return false;
  }

  bareAddress() {
    if (isWord(this.text[this.at - 1])) return false;
    URL_HERE.lastIndex = this.at;
    const found = URL_HERE.exec(this.text)?.[0];
    if (!found) return false;
    const shown = withoutEnd(found);
    const address = safeAddress(shown);
    if (address !== null)
      return this.put({ kind: "link", address, inline: [{ kind: "text", text: shown }] }, this.at + shown.length);
    this.plain += found; // whole, so that it is not looked through again from within
    this.at += found.length;
    return true;
  }
}

// an address without what belongs to the sentence around it: stops, and brackets that were not opened in it
function withoutEnd(address) {
  let end = address.length;
  while (/[.,;:!?*_~\]]/.test(address.charAt(end - 1))) end--;
  let unopened = 0;
  for (const char of address.slice(0, end)) unopened += (char === ")") - (char === "(");
  for (; unopened > 0 && address[end - 1] === ")"; unopened--) end--;
  return address.slice(0, end);
}

function run(text, at, char) {
  let end = at;
  while (text[end] === char) end++;
  return end - at;
}

// the last mark of the code span that begins at `at`, or of its opening where it has no end
function skipCode(text, at) {
  const marks = run(text, at, "`");
  const end = text.indexOf("`".repeat(marks), at + marks);
  return end < 0 ? at + marks - 1 : end + marks - 1;
}

function matching(text, at, open, close) {
  let depth = 0;
  const most = Math.min(text.length, at + MOST_LINK);
  for (let i = at; i < most; i++) {
    if (text[i] === "\\") i++;
    else if (text[i] === open) depth++;
    else if (text[i] === close && --depth === 0) return i;
  }
  return -1;
}
