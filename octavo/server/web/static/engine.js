// The engine seen live: /metrics asked every second, as numbers, charts and percentiles.

import { call } from "./api.js";
import { Chart } from "./chart.js";
import { h } from "./dom.js";
import { showSeconds } from "./message.js";
import { fell, histogram, parse, quantile, since, total } from "./prometheus.js";

const EVERY_MS = 1000;
const SPAN_MS = 5 * 60_000;
const FIRST_SPAN_MS = 60_000; // of what is shown, before there is more
const WINDOW_MS = 60_000; // of percentiles and the hit rate
const COMPUTED = { source: "local_compute" };
const COUNTERS = ["queries", "hit", "generated", "prompted"];
const QUANTILES = [0.5, 0.9, 0.99];

const LATENCIES = [
  ["time_to_first_token_seconds", "Time to first token"],
  ["inter_token_latency_seconds", "Between tokens"],
  ["request_queue_time_seconds", "In the queue"],
  ["request_prefill_time_seconds", "Reading the prompt"],
  ["e2e_request_latency_seconds", "Whole request"],
];

const showCount = (value) => {
  if (value >= 1_000_000) return `${(value / 1_000_000).toFixed(1)}M`;
  if (value >= 1000) return `${(value / 1000).toFixed(value >= 10_000 ? 0 : 1)}k`;
  return String(value >= 100 ? Math.round(value) : Math.round(value * 10) / 10);
};
const showPercent = (value) => `${Math.round(100 * value)} %`;
const showDuration = (value) => (value === 0 ? "0" : showSeconds(value).replace(".0 ", " "));
const PERCENTILES = [
  { name: "p50", style: "line-1" },
  { name: "p90", style: "line-2" },
  { name: "p99", style: "line-3" },
];

export class EngineView {
  #readings = []; // {time, run, running, waiting, kv, ..., histograms}
  #timer = 0;
  #shown = false;
  #asking = false;

  constructor() {
    this.tiles = makeTiles();
    this.charts = makeCharts();
    this.table = h("tbody");
    this.counts = h("dl", { class: "counts" });
    this.fault = h("div", { class: "notice fault", role: "alert", hidden: true });
    this.element = h(
      "section",
      { class: "engine", "aria-label": "Engine" },
      this.fault,
      h(
        "div",
        { class: "tiles" },
        Object.values(this.tiles).map((tile) => tile.element),
      ),
      h(
        "div",
        { class: "charts" },
        Object.values(this.charts).map((chart) => chart.element),
      ),
      h(
        "div",
        { class: "details" },
        h(
          "figure",
          { class: "latencies" },
          h(
            "figcaption",
            {},
            h("h2", {}, "Latency"),
            h(
              "p",
              { class: "fine" },
              "Of requests that ended in the last minute; since the start where there were none.",
            ),
          ),
          h(
            "div",
            { class: "table" },
            h(
              "table",
              {},
              h(
                "thead",
                {},
                h(
                  "tr",
                  {},
                  ["", "p50", "p90", "p99", "mean", "count"].map((name) => h("th", { scope: "col" }, name)),
                ),
              ),
              this.table,
            ),
          ),
        ),
        h("figure", {}, h("figcaption", {}, h("h2", {}, "Since the start")), this.counts),
      ),
    );
    document.addEventListener("visibilitychange", () => this.#poll());
  }

  /** It asks from the first time that it is shown, and not while nobody sees it. */
  setShown(shown) {
    this.#shown = shown;
    this.#poll();
  }

  async #poll() {
    clearTimeout(this.#timer);
    if (!this.#shown || document.hidden || this.#asking) return;
    this.#asking = true;
    try {
      const response = await call("metrics", { quiet: this.refused === true });
      this.#take(parse(await response.text()));
      this.fault.hidden = true;
      this.refused = false;
    } catch (error) {
      this.#failed(error);
    }
    this.#asking = false;
    clearTimeout(this.#timer);
    if (this.#shown && !document.hidden) this.#timer = setTimeout(() => this.#poll(), EVERY_MS);
  }

  #failed(error) {
    this.refused = error.status === 401;
    this.fault.hidden = false;
    const ask = () => {
      this.refused = false;
      this.#poll();
    };
    const button = this.refused ? h("button", { type: "button", class: "quiet", onclick: ask }, "Enter the key") : null;
    if (this.fault.dataset.text === error.message && this.fault.childNodes.length) return;
    this.fault.dataset.text = error.message;
    this.fault.replaceChildren(...[h("span", {}, error.message), button].filter(Boolean));
  }

  #take(samples) {
    const now = Date.now();
    const next = reading(samples, now);
    const last = this.#readings.at(-1);
    if (last) next.run = isSameRun(next, last) ? last.run : last.run + 1;
    this.#readings.push(next);
    while (this.#readings[0].time < now - SPAN_MS - WINDOW_MS) this.#readings.shift();
    this.#draw(now, samples);
  }

  #draw(now, samples) {
    const all = this.#readings;
    const points = all.map((each, i) => derive(each, all[i - 1], before(all, i)));
    const last = points.at(-1);
    const tiles = {
      running: showCount(last.running),
      waiting: showCount(last.waiting),
      kv: showPercent(last.kv),
      hits: last.hits === null ? "–" : showPercent(last.hits),
      generated: last.generated === null ? "–" : showCount(last.generated),
      prompted: last.prompted === null ? "–" : showCount(last.prompted),
    };
    for (const [name, text] of Object.entries(tiles)) this.tiles[name].value.textContent = text;
    this.tiles.kv.bar.value = last.kv;
    const scale = { now, span: Math.min(SPAN_MS, Math.max(FIRST_SPAN_MS, now - all[0].time)) };
    const recent = points.filter((point) => point.time >= now - SPAN_MS);
    const draw = (chart, values) =>
      this.charts[chart].update(
        recent.map((point) => ({ time: point.time, values: values(point) })),
        scale,
      );
    draw("tokens", (point) => [point.generated, point.prompted]);
    draw("requests", (point) => [point.running, point.waiting]);
    draw("cache", (point) => [point.kv, point.hits]);
    draw("first", (point) => point.first);
    draw("between", (point) => point.between);
    draw("whole", (point) => point.whole);
    this.#drawTable(all);
    this.#drawCounts(samples);
  }

  #drawTable(all) {
    const [now, then] = [all.at(-1), before(all, all.length - 1)];
    this.table.replaceChildren(
      ...LATENCIES.map(([name, label]) => {
        const whole = now.histograms[name];
        const minute = whole && since(whole, then?.histograms[name]);
        const data = minute?.count ? minute : whole;
        const cells = data?.count
          ? [
              ...QUANTILES.map((q) => showDuration(quantile(data, q) ?? 0)),
              showDuration(data.sum / data.count),
              showCount(data.count),
            ]
          : ["–", "–", "–", "–", "0"];
        return h(
          "tr",
          {},
          h("th", { scope: "row" }, label),
          cells.map((cell) => h("td", {}, cell)),
        );
      }),
    );
  }

  #drawCounts(samples) {
    const finished = (samples.get("octavo:request_success_total") ?? []).filter(({ value }) => value > 0);
    const rows = [
      ["Answers", showCount(total(samples, "octavo:request_success_total") ?? 0)],
      ...finished.map(({ labels, value }) => [`– ${labels.finished_reason}`, showCount(value)]),
      ["Refused", showCount(total(samples, "octavo:admission_rejections_total") ?? 0)],
      ["Tokens generated", showCount(total(samples, "octavo:generation_tokens_total") ?? 0)],
      ["Prompt tokens computed", showCount(total(samples, "octavo:prompt_tokens_by_source_total", COMPUTED) ?? 0)],
      ["Preemptions", showCount(total(samples, "octavo:num_preemptions_total") ?? 0)],
      ["Steps", showCount(total(samples, "octavo:engine_steps_total") ?? 0)],
      ["KV blocks", cacheText(samples)],
      ["Memory of the front", memoryText(samples)],
    ];
    this.counts.replaceChildren(
      ...rows.filter(([, value]) => value !== null).flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]),
    );
  }
}

function cacheText(samples) {
  const labels = samples.get("octavo:cache_config_info")?.[0]?.labels;
  return labels?.num_gpu_blocks
    ? `${Number(labels.num_gpu_blocks).toLocaleString("en")} of ${labels.block_size} tokens`
    : null;
}

function memoryText(samples) {
  const bytes = total(samples, "process_resident_memory_bytes");
  return bytes === null ? null : `${Math.round(bytes / 2 ** 20)} MiB`;
}

function reading(samples, time) {
  const value = (name) => total(samples, `octavo:${name}`) ?? 0;
  return {
    time,
    run: 0, // counted up where the server began anew
    started: total(samples, "process_start_time_seconds"),
    running: value("num_requests_running"),
    waiting: value("num_requests_waiting"),
    kv: value("kv_cache_usage_perc"),
    queries: value("prefix_cache_queries_total"),
    hit: value("prefix_cache_hits_total"),
    generated: value("generation_tokens_total"),
    prompted: value("prompt_tokens_total"),
    histograms: Object.fromEntries(LATENCIES.map(([name]) => [name, histogram(samples, `octavo:${name}`)])),
  };
}

// the reading that was there a window before reading i, or the oldest since; undefined for the first of a run
function before(all, i) {
  return all.slice(0, i).find((each) => each.run === all[i].run && each.time >= all[i].time - WINDOW_MS);
}

// a server that began anew counts from 0, and may have passed what the one before had counted
function isSameRun(now, last) {
  const histograms = Object.entries(now.histograms);
  return (
    now.started === last.started &&
    COUNTERS.every((name) => now[name] >= last[name]) &&
    !histograms.some(([name, each]) => each && last.histograms[name] && fell(each, last.histograms[name]))
  );
}

function derive(now, last, then) {
  const near = last?.run === now.run && now.time - last.time < 5 * EVERY_MS ? last : null;
  const rate = (name) => (near ? (now[name] - near[name]) / ((now.time - near.time) / 1000) : null);
  const queries = then ? now.queries - then.queries : 0;
  const percentiles = (name) => {
    const whole = now.histograms[name];
    const minute = whole && then ? since(whole, then.histograms[name]) : null;
    return QUANTILES.map((q) => (minute?.count ? quantile(minute, q) : null));
  };
  return {
    time: now.time,
    running: now.running,
    waiting: now.waiting,
    kv: now.kv,
    hits: queries > 0 ? (now.hit - then.hit) / queries : null,
    generated: rate("generated"),
    prompted: rate("prompted"),
    first: percentiles("time_to_first_token_seconds"),
    between: percentiles("inter_token_latency_seconds"),
    whole: percentiles("e2e_request_latency_seconds"),
  };
}

function makeTiles() {
  const tile = (label, unit, withBar = false) => {
    const value = h("b", {}, "–");
    const bar = withBar ? h("progress", { max: 1, value: 0, "aria-label": label }) : null;
    return {
      value,
      bar,
      element: h("div", { class: "tile" }, h("span", {}, label), value, unit ? h("small", {}, unit) : null, bar),
    };
  };
  return {
    running: tile("Running", "sequences"),
    waiting: tile("Waiting", "sequences"),
    generated: tile("Generated", "tokens/s"),
    prompted: tile("Prompts", "tokens/s"),
    kv: tile("KV cache in use", null, true),
    hits: tile("Prefix hits", "of prompt tokens"),
  };
}

function makeCharts() {
  const latency = (title, about) => new Chart({ title, about, series: PERCENTILES, show: showDuration });
  return {
    tokens: new Chart({
      title: "Tokens a second",
      about: "Generated, and read from prompts.",
      series: [
        { name: "generated", style: "line-1" },
        { name: "prompt", style: "line-2" },
      ],
      show: showCount,
      area: true,
    }),
    requests: new Chart({
      title: "Sequences",
      about: "In steps, and waiting for room.",
      series: [
        { name: "running", style: "line-1" },
        { name: "waiting", style: "line-3" },
      ],
      show: showCount,
      area: true,
    }),
    cache: new Chart({
      title: "KV cache",
      about: "Blocks in use, and prompt tokens found in it.",
      series: [
        { name: "in use", style: "line-1" },
        { name: "prefix hits", style: "line-2" },
      ],
      show: showPercent,
      most: 1,
      area: true,
    }),
    first: latency("Time to first token", "Over the last minute."),
    between: latency("Between tokens", "Over the last minute."),
    whole: latency("Whole request", "Over the last minute."),
  };
}
