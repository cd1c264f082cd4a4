// Names, properties and children in; elements out. Text only ever becomes text nodes.

const SVG = "http://www.w3.org/2000/svg"; // a name, never fetched
const AS_PROPERTY = new Set(["value", "checked", "disabled", "hidden", "open", "selected", "tabIndex", "htmlFor"]);

/** h("p", {class: "x", onclick: f}, "text", child): null and false among properties and children are left out. */
export function h(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (value === null || value === undefined) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (AS_PROPERTY.has(key)) element[key] = value;
    else if (value !== false) element.setAttribute(key, value === true ? "" : String(value));
  }
  fill(element, children);
  return element;
}

/** The same for SVG. */
export function svg(name, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) element.setAttribute(key, String(value));
  }
  fill(element, children);
  return element;
}

function fill(element, children) {
  for (const child of children.flat()) {
    if (child !== null && child !== undefined && child !== false) element.append(child);
  }
}

const ICONS = {
  plus: "M10 4v12M4 10h12",
  send: "M10 16V4.5M5 9.5l5-5 5 5",
  stop: "M6 6h8v8H6z",
  copy: "M7.5 7.5h8v8.5h-8zM4.5 12.5v-8.5h8",
  check: "M4.5 10.5l3.5 3.5 7.5-8",
  edit: "M4 16l.8-3.2 8.5-8.5 2.4 2.4-8.5 8.5zM11.5 6.1l2.4 2.4",
  again: "M15.5 8.5A6 6 0 1 0 16 11M16 4.5v4h-4",
  sliders: "M4 6h7M15 6h1M4 14h1M9 14h7M13 4v4M7 12v4",
  theme: "M10 3.5a6.5 6.5 0 1 0 0 13zM10 3.5a6.5 6.5 0 0 1 0 13",
  trash: "M4.5 6h11M8 6V4h4v2M6 6l.7 10h6.6L14 6M8.7 9v4.5M11.3 9v4.5",
  download: "M10 3.5v9M6 9l4 4 4-4M4 16.5h12",
  upload: "M10 13V4M6 7.5l4-4 4 4M4 16.5h12",
  left: "M12 5l-5 5 5 5",
  right: "M8 5l5 5-5 5",
  down: "M5 8l5 5 5-5",
  menu: "M4 6h12M4 10h12M4 14h12",
  chat: "M4 4.5h12v9H9.5L6 16.5v-3H4z",
  chart: "M4 16h12M6 13V9M10 13V5M14 13V7.5",
  warning: "M10 4l7 12H3zM10 9v3M10 13.8v.2",
  tool: "M12.5 4.2a3.5 3.5 0 0 0-3.4 5.2L4 14.5 5.5 16l5.1-5.1a3.5 3.5 0 0 0 5.2-3.4l-2.1 1.2-1.6-1.6z",
  thought: "M10 4a4.6 4.6 0 0 0-2.5 8.4V14h5v-1.6A4.6 4.6 0 0 0 10 4zM8 16.5h4",
  close: "M5 5l10 10M15 5L5 15",
  keys: "M3 6h14v8H3zM6 9h.1M9 9h.1M12 9h.1M14.5 9h.1M6.5 11.5h7",
  more: "M5 10h.1M10 10h.1M15 10h.1",
  onward: "M4 10h11M11 5.5l4.5 4.5-4.5 4.5",
  search: "M9 4.5a4.5 4.5 0 1 0 0 9 4.5 4.5 0 0 0 0-9zM12.3 12.3L16 16",
};

/** An icon of the table above, for the eye only. */
export function icon(name) {
  return svg("svg", { class: "icon", viewBox: "0 0 20 20", "aria-hidden": "true" }, svg("path", { d: ICONS[name] }));
}

/** The mark: a folded sheet. */
export function mark() {
  return svg(
    "svg",
    { class: "mark", viewBox: "0 0 32 32", "aria-hidden": "true" },
    svg("path", { d: "M5 8l11 3.2L27 8v16l-11 3.2L5 24z", class: "mark-sheet" }),
    svg("path", { d: "M16 11.2v16M5 16l11 3.2L27 16" }),
  );
}

/** A button with an icon and no text; its name is what assistive technology and the tooltip say. */
export function iconButton(name, label, onclick, properties = {}) {
  return h(
    "button",
    { type: "button", class: "icon-button", "aria-label": label, title: label, onclick, ...properties },
    icon(name),
  );
}

/** Make a field as high as its text, within its CSS. */
export function fit(field) {
  field.style.height = "auto";
  if (field.scrollHeight) field.style.height = `${field.scrollHeight}px`; // 0 where it is not shown
}

/** Whether a key belongs to an input method: Safari ends the composition before its Enter, which has this code alone. */
export function isComposing(event) {
  return event.isComposing || event.keyCode === 229;
}

/** Show `text` to assistive technology, once. */
export function announce(text) {
  const region = document.getElementById("announcer");
  if (region) region.textContent = text;
}

/** Copy, and show on the button that it is done. */
export async function copyFrom(button, text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    if (!copyBySelection(text)) return;
  }
  button.replaceChildren(icon("check"));
  announce("Copied");
  setTimeout(() => button.replaceChildren(icon("copy")), 1500);
}

// pages served by plain HTTP from another host have no clipboard object
function copyBySelection(text) {
  const field = h("textarea", { class: "unseen", value: text, "aria-hidden": "true" });
  document.body.append(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  return done;
}
