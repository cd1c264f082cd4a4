// The tree of markdown.js in; DOM nodes out. While an answer grows only the blocks that changed are made anew.

import { copyFrom, h, icon } from "./dom.js";
import { highlight } from "./highlight.js";
import { parseBlocks } from "./markdown.js";

/** A container that shows Markdown and can be given a longer text at any time. */
export class MarkdownView {
  #sources = [];

  constructor() {
    this.element = h("div", { class: "prose" });
  }

  /** Show this text. */
  update(text) {
    const blocks = parseBlocks(text);
    let same = 0;
    while (same < blocks.length && same < this.#sources.length && blocks[same].source === this.#sources[same]) same++;
    // the last block shown may have been unfinished with the very same source, but then it looks the same too
    while (this.element.childNodes.length > same) this.element.lastChild.remove();
    this.element.append(...blocks.slice(same).map(block));
    this.#sources = blocks.map((each) => each.source);
  }
}

const BLOCKS = {
  heading: ({ level, inline }) => h(`h${Math.min(6, level + 2)}`, { class: `heading-${level}` }, spans(inline)),
  rule: () => h("hr"),
  quote: ({ blocks }) => h("blockquote", { dir: "auto" }, blocks.map(block)),
  paragraph: ({ inline }) => h("p", {}, spans(inline)),
  code: codeBlock,
  list: listBlock,
  table: tableBlock,
};

function block(data) {
  return BLOCKS[data.kind](data);
}

function codeBlock({ language, text }) {
  const copy = h(
    "button",
    { type: "button", class: "icon-button", "aria-label": "Copy code", title: "Copy code" },
    icon("copy"),
  );
  copy.addEventListener("click", () => copyFrom(copy, text));
  const pieces = highlight(text, language).map(([kind, piece]) =>
    kind ? h("span", { class: `code-${kind}` }, piece) : piece,
  );
  return h(
    "figure",
    { class: "code" },
    h("figcaption", {}, h("span", {}, language || "code"), copy),
    h("pre", { tabindex: "0" }, h("code", {}, pieces)),
  );
}

function listBlock({ ordered, start, loose, items }) {
  const list = h(ordered ? "ol" : "ul", {
    dir: "auto",
    start: ordered && start !== 1 ? start : null,
    class: loose ? "loose" : null,
  });
  for (const { checked, blocks } of items) {
    const box =
      checked === null
        ? null
        : h("input", { type: "checkbox", checked, disabled: true, "aria-label": checked ? "done" : "to do" });
    const content = blocks.map((each) =>
      !loose && each.kind === "paragraph" ? h("span", {}, spans(each.inline)) : block(each),
    );
    list.append(h("li", { class: box ? "task" : null }, box, content));
  }
  return list;
}

function tableBlock({ align, head, rows }) {
  const cell = (name) => (inline, i) => h(name, { class: `align-${align[i]}` }, spans(inline));
  return h(
    "div",
    { class: "table", tabindex: "0", dir: "auto" },
    h(
      "table",
      {},
      h("thead", {}, h("tr", {}, head.map(cell("th")))),
      h(
        "tbody",
        {},
        rows.map((row) => h("tr", {}, row.map(cell("td")))),
      ),
    ),
  );
}

const SPANS = {
  text: ({ text }) => text,
  break: () => h("br"),
  code: ({ text }) => h("code", {}, text),
  formula: ({ text }) => h("code", { class: "formula" }, text),
  strong: ({ inline }) => h("strong", {}, spans(inline)),
  em: ({ inline }) => h("em", {}, spans(inline)),
  strike: ({ inline }) => h("s", {}, spans(inline)),
  link: ({ address, inline }) =>
    h("a", { href: address, target: "_blank", rel: "noopener noreferrer nofollow", title: address }, spans(inline)),
};

function spans(inline) {
  return inline.map((node) => SPANS[node.kind](node));
}
