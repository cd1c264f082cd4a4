// The text of /metrics in; numbers and histograms out.

/** name -> [{labels, value}]. Lines that are none are passed over. */
export function parse(text) {
  const samples = new Map();
  for (const line of text.split("\n")) {
    if (line === "" || line[0] === "#") continue;
    const sample = parseLine(line);
    if (!sample) continue;
    const list = samples.get(sample.name);
    if (list) list.push(sample);
    else samples.set(sample.name, [sample]);
  }
  return samples;
}

const HEAD = /^([a-zA-Z_:][\w:]*)(\{)?/;
const LABEL = /\s*([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"\s*,?/y;

function parseLine(line) {
  const head = HEAD.exec(line);
  if (!head) return null;
  const labels = {};
  let at = head[0].length;
  if (head[2]) {
    LABEL.lastIndex = at;
    for (let label = LABEL.exec(line); label; label = LABEL.exec(line)) {
      labels[label[1]] = label[2].replace(/\\(.)/g, (_, char) => (char === "n" ? "\n" : char));
      at = LABEL.lastIndex;
    }
    at = line.indexOf("}", at) + 1;
    if (at === 0) return null;
  }
  const value = number(line.slice(at).trim().split(/\s+/)[0]);
  return value === null ? null : { name: head[1], labels, value };
}

function number(text) {
  if (text === "+Inf" || text === "Inf") return Infinity;
  if (text === "-Inf") return -Infinity;
  const value = Number(text);
  return text === "" || Number.isNaN(value) ? null : value;
}

/** The sum over a metric's label sets, of those with these labels alone; null where it is not there. */
export function total(samples, name, labels = {}) {
  const wanted = Object.entries(labels);
  const list = samples.get(name)?.filter((sample) => wanted.every(([key, value]) => sample.labels[key] === value));
  return list ? list.reduce((sum, sample) => sum + sample.value, 0) : null;
}

/** {bounds, counts (each bucket's own), sum, count} of a histogram; null where it is not there. */
export function histogram(samples, name) {
  const buckets = samples.get(`${name}_bucket`);
  if (!buckets) return null;
  const upTo = new Map();
  for (const { labels, value } of buckets) {
    const bound = number(labels.le ?? "");
    if (bound !== null) upTo.set(bound, (upTo.get(bound) ?? 0) + value);
  }
  const bounds = [...upTo.keys()].sort((a, b) => a - b);
  const counts = bounds.map((bound, i) => upTo.get(bound) - (i ? upTo.get(bounds[i - 1]) : 0));
  return { bounds, counts, sum: total(samples, `${name}_sum`) ?? 0, count: total(samples, `${name}_count`) ?? 0 };
}

/** What came to a histogram between two readings; all of `later` where it fell, as the server began anew. */
export function since(later, earlier) {
  if (!earlier || later.bounds.length !== earlier.bounds.length || fell(later, earlier)) return later;
  return {
    bounds: later.bounds,
    counts: later.counts.map((count, i) => count - earlier.counts[i]),
    sum: later.sum - earlier.sum,
    count: later.count - earlier.count,
  };
}

/** Whether a histogram holds less than it did. */
export function fell(later, earlier) {
  return later.counts.some((count, i) => count < earlier.counts[i]);
}

/** The q-quantile, linear within its bucket as Prometheus' histogram_quantile; null of nothing. */
export function quantile(data, q) {
  const all = data.counts.reduce((sum, count) => sum + count, 0);
  if (all <= 0) return null;
  let below = 0;
  for (let i = 0; i < data.bounds.length; i++) {
    const count = data.counts[i];
    if (below + count >= q * all && count > 0) {
      const low = i ? data.bounds[i - 1] : 0;
      if (data.bounds[i] === Infinity) return low; // beyond the last bound nothing is known
      return low + (data.bounds[i] - low) * ((q * all - below) / count);
    }
    below += count;
  }
  return null;
}
