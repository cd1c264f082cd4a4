// A conversation as a tree of messages: an edit or another answer is a branch beside the first, and nothing is lost.
//
// conversation: {id, title, created, updated, settings, nodes: {id: node}, leaf}. leaf: the last message shown.
// node: {id, parent, role, content, created} and, where they apply, reasoning, toolCalls, toolCallId, finish, stats, error,
// revision (how many times it has changed).

import { CONTROLS } from "./parameters.js";

const ROLES = new Set(["user", "assistant", "tool"]);
const MOST_TITLE = 60;

export function newId() {
  if (crypto.randomUUID) return crypto.randomUUID();
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

export function newConversation(settings = {}) {
  const now = Date.now();
  return { id: newId(), title: "", created: now, updated: now, settings: { ...settings }, nodes: {}, leaf: null };
}

/** Add a message under `parent` and show it. */
export function addNode(conversation, parent, fields) {
  const node = { id: newId(), parent, content: "", created: Date.now(), ...fields };
  conversation.nodes[node.id] = node;
  conversation.leaf = node.id;
  touch(conversation);
  return node;
}

export function touch(conversation) {
  conversation.updated = Date.now();
}

/** The messages shown, first to last. */
export function shownPath(conversation, leaf = conversation.leaf) {
  const path = [];
  for (let node = conversation.nodes[leaf]; node; node = conversation.nodes[node.parent]) path.push(node);
  return path.reverse();
}

/** Messages with the same parent, in order of age. */
export function siblings(conversation, node) {
  return Object.values(conversation.nodes)
    .filter((other) => other.parent === node.parent)
    .sort((a, b) => a.created - b.created);
}

/** Show the branch of this message, to its latest end. */
export function showBranch(conversation, node) {
  let last = node;
  for (;;) {
    const children = Object.values(conversation.nodes).filter((other) => other.parent === last.id);
    if (!children.length) break;
    last = children.reduce((a, b) => (b.created > a.created ? b : a));
  }
  conversation.leaf = last.id;
}

/** Take a message and all below it away; a sibling, or what stood before, is shown then. */
export function removeNode(conversation, node) {
  const others = siblings(conversation, node).filter((other) => other !== node);
  const doomed = [node.id];
  for (const id of doomed) {
    for (const other of Object.values(conversation.nodes)) if (other.parent === id) doomed.push(other.id);
    delete conversation.nodes[id];
  }
  if (others.length) showBranch(conversation, others.at(-1));
  else conversation.leaf = node.parent;
  touch(conversation);
}

/** Say of answers that no end was written of, as the page was closed meanwhile, that they were stopped. */
export function endHalfAnswers(conversation) {
  for (const node of Object.values(conversation.nodes)) {
    if (node.role === "assistant" && !node.finish && !node.error) node.finish = "stopped";
  }
}

/** The messages of a request that is answered below `leaf`, as the protocol has them. */
export function toMessages(conversation, leaf) {
  const messages = [];
  const system = conversation.settings.system?.trim();
  if (system) messages.push({ role: "system", content: system });
  shownPath(conversation, leaf).forEach((node, i, path) => {
    if (node.role === "tool") {
      messages.push({ role: "tool", tool_call_id: node.toolCallId, content: node.content });
    } else if (node.role === "user") {
      messages.push({ role: "user", content: node.content });
    } else if (node.content || node.toolCalls?.length || path[i + 1]?.role === "user") {
      messages.push(assistantMessage(node)); // an empty one too: many templates want turns that alternate
    }
  });
  return messages;
}

function assistantMessage(node) {
  const message = { role: "assistant", content: node.content };
  if (node.toolCalls?.length) {
    message.tool_calls = node.toolCalls.map((call) => ({
      id: call.id,
      type: "function",
      function: { name: call.name, arguments: call.arguments },
    }));
  }
  return message;
}

/** The reader's title, else the beginning of the first message. */
export function titleOf(conversation) {
  if (conversation.title) return conversation.title;
  const first = Object.values(conversation.nodes).find((node) => node.parent === null && node.content);
  const line = first?.content.trim().split("\n")[0] ?? "";
  return line.length > MOST_TITLE ? `${line.slice(0, MOST_TITLE - 1).trimEnd()}…` : line || "New conversation";
}

/** All conversations as one JSON text. */
export function exportAll(conversations) {
  return JSON.stringify({ format: "octavo-conversations", version: 1, conversations }, null, 1);
}

/** Conversations of an exported text, with new ids; Error with a reason where it is none. Only known fields are taken. */
export function importAll(text) {
  let data = null;
  try {
    data = JSON.parse(text);
  } catch {
    throw new Error("The file is not JSON.");
  }
  if (data?.format !== "octavo-conversations" || !Array.isArray(data.conversations)) {
    throw new Error("The file holds no conversations that were exported here.");
  }
  return data.conversations.map(readConversation);
}

const asText = (value) => (typeof value === "string" ? value : "");
const asTime = (value) => (Number.isFinite(value) ? value : Date.now());
const asNumber = (value) => (Number.isFinite(value) ? value : null);

function readConversation(data, number) {
  if (!data || typeof data.nodes !== "object" || data.nodes === null)
    throw new Error(`Conversation ${number + 1} has no messages.`);
  const made = newConversation();
  made.title = asText(data.title);
  made.created = asTime(data.created);
  made.updated = asTime(data.updated);
  made.settings = readSettings(data.settings ?? {});
  const nodes = Object.entries(data.nodes).sort(([, a], [, b]) => asTime(a?.created) - asTime(b?.created));
  const ids = new Map(nodes.map(([id]) => [id, newId()]));
  for (const [id, node] of nodes) made.nodes[ids.get(id)] = readNode(node, ids.get(id), ids);
  made.leaf = ids.get(data.leaf) ?? null;
  if (!isTree(made.nodes)) throw new Error(`Conversation ${number + 1}: its messages do not follow each other.`);
  if (Object.values(made.nodes).some((node) => node.parent === null && node.role !== "user"))
    throw new Error(`Conversation ${number + 1} does not begin with a message of yours.`);
  const last = Object.values(made.nodes).at(-1);
  if (made.leaf === null && last) showBranch(made, last);
  return made;
}

function readSettings(data) {
  const settings = {};
  for (const name of ["system", "tools"]) if (typeof data[name] === "string") settings[name] = data[name];
  for (const { name } of CONTROLS) if (Number.isFinite(data[name])) settings[name] = data[name];
  return settings;
}

function readNode(data, id, ids) {
  if (!data || !ROLES.has(data.role)) throw new Error("A message has no role that is known.");
  const node = {
    id,
    parent: ids.get(data.parent) ?? null,
    role: data.role,
    content: asText(data.content),
    created: asTime(data.created),
  };
  for (const name of ["reasoning", "toolCallId", "finish", "model"]) if (data[name]) node[name] = asText(data[name]);
  if (Array.isArray(data.toolCalls)) {
    node.toolCalls = data.toolCalls.map((call) => ({
      id: asText(call?.id),
      name: asText(call?.name),
      arguments: asText(call?.arguments),
    }));
  }
  if (data.stats && typeof data.stats === "object") {
    node.stats = Object.fromEntries(Object.entries(data.stats).map(([name, value]) => [name, asNumber(value)]));
  }
  return node;
}

function isTree(nodes) {
  const good = new Set([null]);
  return Object.values(nodes).every((node) => {
    const path = new Set();
    for (let id = node.id; !good.has(id); id = nodes[id].parent) {
      if (path.has(id)) return false;
      path.add(id);
    }
    for (const id of path) good.add(id);
    return true;
  });
}
