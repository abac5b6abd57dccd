"use strict";
// Strategies as dots, phases as bars, distributions as curves, throughput against load, the estimates.

const QUANTILES = ["p50", "p95", "p99"];
const SYMBOLS = { p50: "circle", p95: "diamond2", p99: "triangle2" };
const rowHeight = 34;

function drawLatency(width) {
  const points = strategies.flatMap((one, index) => shown.has(index)
    ? QUANTILES.map((q) => ({ index, q, ...one.figures.loop_seconds[q] })).filter((d) => d.value > 0) : []);
  const domain = frame.logDomain(points.flatMap((d) => [d.value, d.low ?? d.value, d.high ?? d.value]));
  const marginLeft = frame.margin(width);
  return Plot.plot(frame.options(width, 70 + rowHeight * strategies.length, {
    marginLeft, marginTop: 34,
    x: { type: "log", domain, label: null, ticks: frame.logTicks(domain, (width - marginLeft) / 62), tickFormat: format.tick, grid: true },
    y: frame.rows(width, marginLeft),
    marks: [
      Plot.text(["loop latency   ● p50  ◆ p95  ▲ p99"], { frameAnchor: "top-left", dy: -30, text: (d) => d, fontWeight: 600 }),
      Plot.ruleY(points.filter((d) => d.low !== null), {
        y: "index", x1: "low", x2: "high", stroke: (d) => frame.colour(d.index), strokeWidth: 7, strokeOpacity: 0.3, strokeLinecap: "round",
      }),
      Plot.dot(points, {
        x: "value", y: "index", symbol: (d) => SYMBOLS[d.q], fill: (d) => frame.colour(d.index), r: 5, stroke: "var(--paper)", strokeWidth: 1,
      }),
      Plot.tip(points, Plot.pointer({ x: "value", y: "index", title: (d) => `${strategies[d.index].name}\n${d.q} ${estimate(d, format.duration)}` })),
    ],
  }));
}

function estimate(d, shown) {
  return d.low === null || d.low === undefined ? shown(d.value) : `${shown(d.value)} [${shown(d.low)}, ${shown(d.high)}]`;
}

function drawRate(width, title, get, shownAs, percent) {
  const points = strategies.map((one, index) => ({ index, ...get(one.figures) }))
    .filter((d) => shown.has(d.index) && d.value !== null);
  const alone = width > 500; // it stands below the others, and needs names of its own
  const marginLeft = alone || getComputedStyle(document.querySelector(".pair")).gridTemplateColumns.split(" ").length === 1 ? frame.margin(width) : 10;
  const most = Math.max(...points.map((d) => d.high ?? d.value), percent ? 0.01 : 0.001);
  return Plot.plot(frame.options(width, 70 + rowHeight * strategies.length, {
    marginLeft, marginTop: 34,
    x: { domain: [0, most * 1.08], label: null, ticks: 3, grid: true, tickFormat: percent ? (d) => `${+(d * 100).toFixed(1)} %` : undefined },
    y: { ...frame.rows(width, marginLeft), axis: marginLeft > 10 ? "left" : null },
    marks: [
      Plot.text([title], { frameAnchor: "top-left", dy: -30, text: (d) => d, fontWeight: 600 }),
      Plot.ruleY(points.filter((d) => d.low !== null), {
        y: "index", x1: "low", x2: "high", stroke: (d) => frame.colour(d.index), strokeWidth: 7, strokeOpacity: 0.3, strokeLinecap: "round",
      }),
      Plot.dot(points, { x: "value", y: "index", fill: (d) => frame.colour(d.index), r: 5, stroke: "var(--paper)", strokeWidth: 1 }),
      Plot.ruleX([0], { stroke: "var(--line)" }),
      Plot.tip(points, Plot.pointer({ x: "value", y: "index", title: (d) => `${strategies[d.index].name}\n${estimate(d, shownAs)}` })),
    ],
  }));
}

function drawPhases(width) {
  const parts = strategies.flatMap((one, index) => shown.has(index)
    ? Object.entries(one.figures.phases).map(([phase, seconds]) => ({ index, phase, seconds, mean: one.figures.mean_loop_seconds })) : []);
  const totals = strategies.map((one, index) => ({ index, mean: one.figures.mean_loop_seconds })).filter((d) => d.mean && shown.has(d.index));
  const most = Math.max(...totals.map((d) => d.mean), 1e-6);
  const marginLeft = frame.margin(width), inner = width - marginLeft - 70;
  const names = Object.keys(report.phases);
  const stack = { y: "index", x: "seconds", order: (d) => names.indexOf(d.phase) };
  const label = (d) => (d.seconds / most) * inner > 58 ? format.duration(d.seconds) : "";
  return Plot.plot(frame.options(width, 50 + (rowHeight + 6) * strategies.length, {
    marginLeft, marginTop: 6, marginRight: 70,
    x: { domain: [0, most], label: null, ticks: Math.max(2, Math.floor(inner / 90)), tickFormat: format.tick, grid: true },
    y: frame.rows(width, marginLeft),
    marks: [
      Plot.barX(parts, Plot.stackX({ ...stack, fill: (d) => report.phases[d.phase] ?? "#8A8F98", stroke: "var(--paper)", strokeWidth: 1 })),
      Plot.text(parts, Plot.stackX({ ...stack, text: label, fill: (d) => onColour(report.phases[d.phase] ?? "#8A8F98"), fontSize: 11, pointerEvents: "none" })),
      Plot.text(totals, { x: "mean", y: "index", text: (d) => format.duration(d.mean), textAnchor: "start", dx: 7, fontWeight: 600 }),
      Plot.tip(parts, Plot.pointer(Plot.stackX({ ...stack, title: (d) => `${strategies[d.index].name}\n${d.phase.replace("_", " ")} ${format.duration(d.seconds)}, ${format.percent(d.seconds / d.mean)}` }))),
    ],
  }));
}

function onColour(colour) {
  return d3.lab(colour).l > 62 ? "#15181d" : "#fff";
}

function drawDistribution(width) {
  const series = report.distributions[+document.getElementById("pick-series").value];
  const points = series.curves.flatMap((curve, index) => curve && shown.has(index)
    ? curve.map((seconds, place) => ({ index, place, seconds, share: report.shares[place] })).filter((d) => d.seconds > 0) : []);
  const domain = frame.logDomain(points.map((d) => d.seconds));
  const labels = direct(series);
  const marginLeft = 44;
  const plot = Plot.plot(frame.options(width, 340, {
    marginLeft, marginTop: 12, marginRight: 40,
    x: { type: "log", domain, label: null, ticks: frame.logTicks(domain, (width - 90) / 64), tickFormat: format.tick, grid: true },
    y: { domain: [0, 1], label: null, ticks: [0, 0.25, 0.5, 0.75, 1], tickFormat: (d) => `${Math.round(d * 100)} %`, grid: true },
    marks: [
      Plot.ruleY([0.5, 0.95, 0.99], { stroke: "var(--soft)", strokeDasharray: "2 4", strokeWidth: 1 }),
      Plot.text([["p50", 0.5], ["p95", 0.95]], { frameAnchor: "right", y: (d) => d[1], text: (d) => d[0], dx: 32, fill: "var(--soft)", fontSize: 11, textAnchor: "end" }),
      Plot.line(points, { x: "seconds", y: "share", z: "index", stroke: (d) => frame.colour(d.index), strokeWidth: 2, curve: "linear" }),
      Plot.text(labels, { x: "seconds", y: "share", text: (d) => strategies[d.index].name, textAnchor: "start", dx: 8, fontWeight: 600, stroke: "var(--paper)", strokeWidth: 4, fill: "currentColor", fontSize: 12 }),
      Plot.dot(labels, { x: "seconds", y: "share", fill: (d) => frame.colour(d.index), r: 3.5 }),
      Plot.tip(points, Plot.pointer({ x: "seconds", y: "share", title: (d) => `${strategies[d.index].name}\n${format.percent(d.share)} within ${format.duration(d.seconds)}` })),
    ],
  }));
  plot.addEventListener("input", () => readOut(series, plot.value));
  return plot;
}

// Names beside the curves, each at a different height, so that they do not overlap.
function direct(series) {
  const curves = series.curves.map((curve, index) => ({ curve, index })).filter((d) => d.curve && shown.has(d.index));
  curves.sort((a, b) => a.curve[50] - b.curve[50]);
  return curves.map(({ curve, index }, place) => {
    const at = Math.round(78 - (60 * place) / Math.max(1, curves.length - 1));
    return { index, seconds: curve[at], share: report.shares[at] };
  }).filter((d) => d.seconds > 0);
}

function readOut(series, point) {
  if (!point) return;
  const place = document.getElementById("readout");
  const head = Object.assign(document.createElement("b"), { textContent: `${format.percent(point.share)} of ${series.name} take at most ` });
  const parts = series.curves.flatMap((curve, index) => {
    if (!curve || !shown.has(index)) return [];
    const span = document.createElement("span");
    const value = Object.assign(document.createElement("b"), { textContent: format.duration(curve[point.place]) });
    span.append(`${strategies[index].name} `, value);
    return [span];
  });
  place.replaceChildren(head, ...parts);
}

function drawAgainstLoad(width, title, get, law, log) {
  const lines = report.levels.filter((line) => shown.has(line.strategy));
  const points = lines.flatMap((line) => line.points.map((point) => {
    const [value, low, high] = point[get];
    return { index: line.strategy, users: point.users, value, low, high };
  })).filter((d) => d.value !== null);
  const curves = law ? lines.flatMap((line) => line.law.map(([users, value]) => ({ index: line.strategy, users, value }))) : [];
  const peaks = law ? lines.filter((line) => line.peak).map((line) => ({ index: line.strategy, users: line.peak[0], low: line.peak[1], high: line.peak[2] })) : [];
  const ends = [...d3.rollup(points, (all) => d3.greatest(all, (d) => d.users), (d) => d.index).values()];
  const most = d3.max(points, (d) => d.users) ?? 1;
  const marginRight = Math.min(110, width * 0.3);
  return Plot.plot(frame.options(width, 300, {
    marginTop: 34, marginRight, marginLeft: 54,
    x: { domain: [0, Math.max(most, d3.max(peaks, (d) => d.users) ?? 0) * 1.04], label: "agents", ticks: 5 },
    y: { grid: true, label: null, type: log ? "log" : "linear", ...(log ? { ticks: 4, tickFormat: format.tick } : { zero: true, ticks: 5 }) },
    marks: [
      Plot.text([title], { frameAnchor: "top-left", dy: -30, text: (d) => d, fontWeight: 600 }),
      Plot.ruleX(peaks, { x: "users", stroke: (d) => frame.colour(d.index), strokeDasharray: "3 3" }),
      Plot.line(curves, { x: "users", y: "value", z: "index", stroke: (d) => frame.colour(d.index), strokeOpacity: 0.7 }),
      ...(law && curves.length ? [] : [Plot.line(points, { x: "users", y: "value", z: "index", stroke: (d) => frame.colour(d.index), strokeOpacity: 0.6 })]),
      Plot.ruleX(points.filter((d) => d.low !== null), { x: "users", y1: "low", y2: "high", stroke: (d) => frame.colour(d.index), strokeWidth: 5, strokeOpacity: 0.3 }),
      Plot.dot(points, { x: "users", y: "value", fill: (d) => frame.colour(d.index), r: 4, stroke: "var(--paper)" }),
      Plot.text(ends, { x: "users", y: "value", text: (d) => format.cut(strategies[d.index].name, 15), textAnchor: "start", dx: 8 }),
      Plot.tip(points, Plot.pointer({ x: "users", y: "value", title: (d) => `${strategies[d.index].name}, ${d.users} agents\n${estimate(d, log ? format.duration : format.number)}` })),
    ],
  }));
}

function drawEstimates(width) {
  const rows = report.counterfactuals.map((one, place) => ({ ...one, place })).filter((d) => shown.has(d.strategy));
  const domain = [0, 1.12 * Math.max(...rows.flatMap((d) => [d.p50.measured, d.p50.estimated, d.p50.high]), 1e-6)];
  return Plot.plot(frame.options(width, 44 + 34 * rows.length, {
    marginLeft: 12, marginRight: 60, marginTop: 4,
    x: { domain, label: null, tickFormat: format.tick, ticks: Math.max(2, Math.floor(width / 110)), grid: true },
    y: { type: "band", domain: rows.map((d) => d.place), axis: null },
    marks: [
      Plot.text(rows, { x: 0, y: "place", text: (d) => `${strategies[d.strategy].name} ${d.change}`, textAnchor: "start", dy: -9, fontSize: 11.5, stroke: "var(--paper)", strokeWidth: 3, fill: "currentColor" }),
      Plot.ruleY(rows, { x1: (d) => d.p50.low, x2: (d) => d.p50.high, y: "place", dy: 5, stroke: (d) => frame.colour(d.strategy), strokeWidth: 7, strokeOpacity: 0.25 }),
      Plot.arrow(rows, { x1: (d) => d.p50.measured, x2: (d) => d.p50.estimated, y1: "place", y2: "place", dy: 5, stroke: (d) => frame.colour(d.strategy), strokeWidth: 2.5, headLength: 7 }),
      Plot.dot(rows, { x: (d) => d.p50.measured, y: "place", dy: 5, r: 4, fill: (d) => frame.colour(d.strategy) }),
      Plot.text(rows, { x: (d) => Math.max(d.p50.measured, d.p50.high), y: "place", dy: 5, dx: 9, textAnchor: "start", fontSize: 11, fill: "var(--soft)", text: (d) => `${format.duration(d.p50.measured)} → ${format.duration(d.p50.estimated)}` }),
    ],
  }));
}

function installCharts() {
  frame.add("chart-latency", drawLatency);
  frame.add("chart-goodput", (width) => drawRate(width, "good loops/s", (f) => f.goodput, format.number, false));
  frame.add("chart-failures", (width) => drawRate(width, "failed loops", (f) => f.failure_rate, format.percent, true));
  frame.add("chart-phases", drawPhases);
  frame.add("chart-distribution", drawDistribution);
  frame.add("chart-throughput", (width) => drawAgainstLoad(width, "good loops/s", "goodput", true, false));
  frame.add("chart-tail", (width) => drawAgainstLoad(width, "p95", "p95", false, true));
  frame.add("chart-estimates", drawEstimates);
  const pick = document.getElementById("pick-series");
  if (pick) pick.addEventListener("change", () => frame.paint(document.getElementById("chart-distribution")));
}
