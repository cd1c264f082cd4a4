// Two tabs' copies of one conversation in; what both wrote in one. What either took away stays away, unless the other
// has written on in it.

const revisionOf = (node) => node.revision ?? 0;

/** What a copy is like now, for a later merge(). */
export function stateOf(conversation) {
  return {
    revisions: new Map(Object.values(conversation.nodes).map((node) => [node.id, revisionOf(node)])),
    title: conversation.title,
    settings: JSON.stringify(conversation.settings),
  };
}

/** Bring into `mine` what came to `kept` since both were as `state` tells. Objects of `mine` stay the same objects. */
export function merge(mine, kept, state) {
  mine.nodes = mergeNodes(mine.nodes, kept.nodes, state.revisions);
  if (mine.title === state.title) mine.title = kept.title;
  if (JSON.stringify(mine.settings) === state.settings) become(mine.settings, kept.settings);
  mine.updated = Math.max(mine.updated, kept.updated);
  if (!mine.nodes[mine.leaf] || isBelow(mine, kept.leaf)) mine.leaf = mine.nodes[kept.leaf] ? kept.leaf : null;
}

function mergeNodes(mine, kept, revisions) {
  const nodes = {};
  // with all that it answers, as it could not be shown without
  const take = (from, id) => {
    for (let node = from[id]; node && !nodes[node.id]; node = from[node.parent]) nodes[node.id] = node;
  };
  const isNew = (node) => revisions.get(node.id) !== revisionOf(node);
  for (const node of Object.values(mine)) if (kept[node.id] || isNew(node)) take(mine, node.id);
  for (const node of Object.values(kept)) {
    if (mine[node.id] || isNew(node)) take(kept, node.id);
    const taken = nodes[node.id];
    if (taken && revisionOf(node) > revisionOf(taken)) become(taken, node);
  }
  return nodes;
}

function become(one, other) {
  for (const name of Object.keys(one)) if (!(name in other)) delete one[name];
  Object.assign(one, other);
}

// whether the message with this id follows the last one that is shown
function isBelow({ nodes, leaf }, id) {
  let node = nodes[id];
  while (node && node.id !== leaf) node = nodes[node.parent];
  return node !== undefined;
}
