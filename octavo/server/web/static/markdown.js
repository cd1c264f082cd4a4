// Markdown in; a tree of plain objects out, which render.js shows. No HTML passes: tags are text like any other.
//
// What language models write, not all of CommonMark: headings, paragraphs (a line break is kept), lists, tasks, quotes,
// tables, rules, fenced code; strong, emphasis, strike, code, links. Formulas are kept as they are written.

import { parseInline } from "./inline.js";

// No two repeats beside each other in a pattern may take the same characters: a line that fits nearly would take the
// square of its length.
const DEEPEST = 10; // quotes and lists in each other; below that they are text
const FENCE = /^( {0,3})(`{3,}(?!`)|~{3,}(?!~))([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]+|$)(.*)$/;
const RULE = /^ {0,3}(?:(?:\*[ \t]*){3,}|(?:-[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])(?:[ \t]+(.*)|)$/;
const TASK = /^\[([ xX])\][ \t]+/;
const DELIMITERS = /^ {0,3}\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*(?:\|[ \t]*)?$/;

/** Blocks: {kind, source, ...}. `source` tells whether one has changed since the last parse. */
export function parseBlocks(text) {
  return parse(text.replace(/\r\n?/g, "\n").replace(/\t/g, "    ").split("\n"), 0);
}

function parse(lines, depth) {
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    if (isBlank(lines[at])) {
      at++;
      continue;
    }
    const [block, next] = readBlock(lines, at, depth);
    block.source = lines.slice(at, next).join("\n");
    blocks.push(block);
    at = next;
  }
  return blocks;
}

function readBlock(lines, at, depth) {
  const line = lines[at];
  const fence = FENCE.exec(line);
  if (fence) return readCode(lines, at, fence);
  const heading = HEADING.exec(line);
  if (heading) {
    const text = heading[2].trim().replace(/(^|\s)#+$/, "");
    return [{ kind: "heading", level: heading[1].length, inline: parseInline(text) }, at + 1];
  }
  if (RULE.test(line)) return [{ kind: "rule" }, at + 1];
  if (depth < DEEPEST) {
    if (QUOTE.test(line)) return readQuote(lines, at, depth);
    if (ITEM.test(line)) return readList(lines, at, depth);
  }
  if (isTable(lines, at)) return readTable(lines, at);
  return readParagraph(lines, at, depth);
}

const isBlank = (line) => line.trim() === "";
const indentOf = (line) => line.length - line.trimStart().length;

function isTable(lines, at) {
  const next = lines[at + 1];
  if (next === undefined || !lines[at].includes("|") || !DELIMITERS.test(next)) return false;
  return splitRow(lines[at]).length === splitRow(next).length;
}

function startsBlock(lines, at, depth) {
  const line = lines[at];
  if (FENCE.test(line) || HEADING.test(line) || RULE.test(line) || isTable(lines, at)) return true;
  return depth < DEEPEST && (QUOTE.test(line) || /^ {0,3}(?:[-*+]|1[.)])[ \t]+\S/.test(line));
}

function readCode(lines, at, [, indent, marks, info]) {
  const text = [];
  let next = at + 1;
  let closed = false;
  for (; next < lines.length && !closed; next++) {
    const end = lines[next].trim();
    closed = end.length >= marks.length && end === marks[0].repeat(end.length);
    if (!closed) text.push(lines[next].slice(Math.min(indent.length, indentOf(lines[next]))));
  }
  return [{ kind: "code", language: info.trim().split(/[\s{]/)[0], text: text.join("\n"), closed }, next];
}

function readQuote(lines, at, depth) {
  const inner = [];
  let next = at;
  while (next < lines.length && !isBlank(lines[next])) {
    if (!QUOTE.test(lines[next]) && startsBlock(lines, next, depth)) break;
    inner.push(lines[next].replace(QUOTE, ""));
    next++;
  }
  return [{ kind: "quote", blocks: parse(inner, depth + 1) }, next];
}

// A line belongs to an item where it stands two columns or more inside its marker: models are not exact about it.
function readList(lines, at, depth) {
  const [, lead, marker] = ITEM.exec(lines[at]);
  const base = lead.length;
  const sort = marker.at(-1);
  const items = [];
  let loose = false;
  let next = at;
  while (next < lines.length) {
    const item = ITEM.exec(lines[next]);
    if (!item || item[1].length >= base + 2 || item[1].length < base || item[2].at(-1) !== sort) break;
    if (RULE.test(lines[next])) break;
    const [inner, after, gap] = readItem(lines, next, { item, base, depth });
    loose ||= gap.inside || (gap.after && isSibling(lines[after], base, sort));
    items.push(makeItem(inner, depth));
    next = after;
  }
  const ordered = /\d/.test(marker);
  return [{ kind: "list", ordered, start: ordered ? Number.parseInt(marker, 10) : 1, loose, items }, next];
}

const isSibling = (line, base, sort) => {
  const item = line === undefined ? null : ITEM.exec(line);
  return item !== null && item[1].length >= base && item[1].length < base + 2 && item[2].at(-1) === sort;
};

function readItem(lines, at, { item, base, depth }) {
  const [, lead, marker, first = ""] = item;
  const width = lead.length + marker.length + 1;
  const inner = [first];
  const gap = { inside: false, after: false };
  let next = at + 1;
  let blanks = 0;
  for (; next < lines.length; next++) {
    const line = lines[next];
    if (isBlank(line)) {
      blanks++;
      continue;
    }
    const inside = indentOf(line) >= base + 2;
    if (!inside && (blanks || ITEM.test(line) || startsBlock(lines, next, depth))) break;
    for (; blanks; blanks--) {
      inner.push("");
      gap.inside ||= !ITEM.test(line);
    }
    inner.push(line.slice(Math.min(indentOf(line), width)));
  }
  gap.after = blanks > 0;
  return [inner, next, gap];
}

function makeItem(lines, depth) {
  const task = TASK.exec(lines[0]);
  if (task) lines[0] = lines[0].slice(task[0].length);
  return { checked: task ? task[1] !== " " : null, blocks: parse(lines, depth + 1) };
}

function readTable(lines, at) {
  const align = splitRow(lines[at + 1]).map((cell) => {
    const [left, right] = [cell.startsWith(":"), cell.endsWith(":")];
    return left && right ? "center" : right ? "right" : "left";
  });
  const head = splitRow(lines[at]).map(parseInline);
  const rows = [];
  let next = at + 2;
  for (; next < lines.length && lines[next].includes("|") && !isBlank(lines[next]); next++) {
    const cells = splitRow(lines[next]);
    rows.push(align.map((_, i) => parseInline(cells[i] ?? "")));
  }
  return [{ kind: "table", align, head, rows }, next];
}

function splitRow(line) {
  const cells = [];
  let cell = "";
  let code = false;
  const text = line.trim().replace(/^\|/, "");
  for (let i = 0; i < text.length; i++) {
    if (text[i] === "\\" && text[i + 1] === "|") {
      cell += "|";
      i++;
    } else if (text[i] === "|" && !code) {
      cells.push(cell.trim());
      cell = "";
    } else {
      if (text[i] === "`") code = !code && text.indexOf("`", i + 1) > 0;
      cell += text[i];
    }
  }
  if (cell.trim() !== "" || !text.endsWith("|")) cells.push(cell.trim());
  return cells;
}

function readParagraph(lines, at, depth) {
  let next = at + 1;
  while (next < lines.length && !isBlank(lines[next]) && !startsBlock(lines, next, depth)) next++;
  const text = lines
    .slice(at, next)
    .map((line) => line.trim())
    .join("\n");
  return [{ kind: "paragraph", inline: parseInline(text) }, next];
}
