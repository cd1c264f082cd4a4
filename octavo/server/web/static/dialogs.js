// Questions that come before anything else: the key, a confirmation; and the list of shortcuts.

import { h, iconButton } from "./dom.js";

const APPLE = /Mac|iPhone|iPad/.test(navigator.platform);
const MOD = APPLE ? "⌘" : "Ctrl";

export const SHORTCUTS = [
  ["Send the message", ["Enter"]],
  ["Begin a line", ["Shift", "Enter"]],
  ["Stop the answer; close what is open", ["Esc"]],
  ["Edit the last message, from an empty field", ["↑"]],
  ["New conversation", [MOD, "Shift", "O"]],
  ["Search conversations", [MOD, "K"]],
  ["Settings", [MOD, ","]],
  ["Chat or engine", [MOD, "Shift", "E"]],
  ["To the message field", ["/"]],
  ["This list", ["?"]],
];

/** The key that the reader gives, or null. wrong: one was sent and refused. */
export function askKey(wrong) {
  const field = h("input", { type: "password", id: "key", autocomplete: "off", spellcheck: "false", required: true });
  const text = wrong ? "That key was not accepted. Another one?" : "This server asks for an API key.";
  const value = () => field.value.trim() || null;
  return ask(
    "API key",
    [
      h("p", { class: wrong ? "fault" : null }, text),
      h("label", { for: "key" }, "Key"),
      field,
      h("p", { class: "fine" }, "Kept until this tab is closed, and sent to this server alone."),
    ],
    { yes: "Use this key", value },
  );
}

/** True where the reader agrees. */
export async function confirmed(question, yes) {
  return (await ask("", [h("p", {}, question)], { yes, value: () => true, danger: true })) === true;
}

/** Say something that has to be read. */
export async function tell(title, text) {
  await ask(title, [h("p", {}, text)], { yes: "Close", value: () => true, alone: true });
}

/** A new title for a conversation, or null. */
export function askTitle(title) {
  const field = h("input", { type: "text", id: "title", value: title, maxlength: 120 });
  return ask("Rename", [h("label", { for: "title" }, "Title"), field], {
    yes: "Rename",
    value: () => field.value.trim(),
  });
}

export async function showShortcuts() {
  const rows = SHORTCUTS.map(([what, keys]) =>
    h(
      "tr",
      {},
      h("td", {}, what),
      h(
        "td",
        {},
        keys.flatMap((key) => [h("kbd", {}, key), " "]),
      ),
    ),
  );
  await ask("Keyboard", [h("table", { class: "shortcuts" }, h("tbody", {}, rows))], {
    yes: "Close",
    value: () => true,
    alone: true,
  });
}

function ask(title, content, { yes, value, danger = false, alone = false }) {
  return new Promise((resolve) => {
    let answer = null;
    const before = document.activeElement;
    const agree = (event) => {
      event.preventDefault();
      answer = value();
      if (answer !== null) dialog.close();
    };
    const dialog = h(
      "dialog",
      { class: "dialog", "aria-label": title || content[0].textContent },
      h(
        "form",
        { onsubmit: agree },
        title
          ? h(
              "header",
              {},
              h("h2", {}, title),
              iconButton("close", "Close", () => dialog.close()),
            )
          : null,
        content,
        h(
          "footer",
          {},
          alone ? null : h("button", { type: "button", class: "quiet", onclick: () => dialog.close() }, "Cancel"),
          h("button", { type: "submit", class: danger ? "primary danger" : "primary" }, yes),
        ),
      ),
    );
    dialog.addEventListener("close", () => {
      dialog.remove();
      refocus(before);
      resolve(answer);
    });
    document.body.append(dialog);
    dialog.showModal();
    (dialog.querySelector("input") ?? dialog.querySelector("[type=submit]")).focus();
  });
}

// Chromium gives the focus back to a field that is still inert, which then takes no text: it is given once more
function refocus(element) {
  if (document.activeElement !== element && document.activeElement !== document.body) return;
  element?.blur?.();
  element?.focus?.({ preventScroll: true });
}
