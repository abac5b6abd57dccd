"use strict";
// The run over time: one lane per figure, all on one axis, in the colour of the strategy whose turn it was.

const course = report.course;
const courseEnd = Math.max(0, ...course.trials.map((trial) => trial.drained));

function binsOf(key) {
  return course.trials.filter((trial) => frame.visible(trial.strategy)).flatMap((trial) => trial[key].map((value, place) => ({
    trial, value,
    from: trial.start + place * course.width,
    to: Math.min(trial.start + (place + 1) * course.width, trial.drained),
  }))).filter((bin) => bin.value !== null);
}

function lane(width, marks, more = {}) {
  const blocks = course.trials.filter((trial, place) => place && trial.block !== course.trials[place - 1].block);
  const uncounted = course.trials.flatMap((trial) => [[trial.start, trial.warm], [trial.end, trial.drained]]).filter(([from, to]) => to > from);
  return Plot.plot(frame.options(width, 110, {
    marginTop: 6, marginBottom: 20, marginLeft: 46, marginRight: 12,
    x: { domain: [0, courseEnd], label: null, ticks: Math.max(2, Math.floor(width / 110)), tickFormat: (d) => `${+d.toFixed(2)} s` },
    ...more,
    y: { grid: true, label: null, ticks: 3, zero: true, nice: true, ...more.y },
    marks: [
      Plot.rectX(uncounted, { x1: (d) => d[0], x2: (d) => d[1], fill: "var(--shade)" }),
      Plot.ruleX(blocks, { x: "start", stroke: "var(--soft)", strokeWidth: 1, strokeDasharray: "2 3" }),
      ...marks,
    ],
  }));
}

const binTip = (bins, text) => Plot.tip(bins, Plot.pointerX({
  x: (d) => (d.from + d.to) / 2, y: "value",
  title: (d) => `${d.trial.strategy >= 0 ? strategies[d.trial.strategy].name : "another strategy"}, block ${d.trial.block + 1}, at ${d.from.toFixed(1)} s\n${text(d)}`,
}));
const binColour = (d) => frame.colour(d.trial.strategy);

function drawTrials(width) {
  const perSecond = (width - 58) / Math.max(courseEnd, 1e-6);
  return Plot.plot(frame.options(width, 46, {
    marginTop: 16, marginBottom: 6, marginLeft: 46, marginRight: 12,
    x: { domain: [0, courseEnd], axis: null },
    marks: [
      Plot.rectX(course.trials, { x1: "start", x2: "drained", fill: (d) => frame.colour(d.strategy), fillOpacity: (d) => (frame.visible(d.strategy) ? 1 : 0.2), insetRight: 1 }),
      Plot.text(course.trials, { x: (d) => (d.start + d.drained) / 2, fill: (d) => onColour(frame.colour(d.strategy)), fontSize: 10.5,
        text: (d) => {
          const name = d.strategy >= 0 ? strategies[d.strategy].name : "";
          const room = Math.floor(((d.drained - d.start) * perSecond - 6) / 6);
          return room >= Math.min(name.length, 7) ? format.cut(name, room) : "";
        } }),
      Plot.text(course.trials.filter((d, place) => !place || d.block !== course.trials[place - 1].block), {
        x: "start", frameAnchor: "top-left", dy: -14, textAnchor: "start", fontSize: 10.5, fill: "var(--soft)",
        text: (d) => (perSecond * courseEnd > 60 * new Set(course.trials.map((t) => t.block)).size ? `block ${d.block + 1}` : `${d.block + 1}`) }),
    ],
  }));
}

function drawCompletions(width) {
  const done = binsOf("good"), failed = binsOf("failed");
  const both = done.map((bin, place) => ({ ...bin, failures: failed[place].value }));
  return lane(width, [
    Plot.rectY(both, { x1: "from", x2: "to", y1: 0, y2: "value", fill: binColour, inset: 0 }),
    Plot.rectY(both.filter((d) => d.failures), { x1: "from", x2: "to", y1: "value", y2: (d) => d.value + d.failures, fill: report.phases.failed, fillOpacity: 0.8 }),
    binTip(both, (d) => `${format.number(d.value)}/s good, ${format.number(d.failures)}/s failed`),
  ]);
}

function drawLatencies(width) {
  const median = binsOf("median"), slowest = binsOf("slowest");
  return lane(width, [
    Plot.dot(slowest, { x: (d) => (d.from + d.to) / 2, y: "value", r: 1.6, fill: binColour, fillOpacity: 0.7 }),
    Plot.line(median, { x: (d) => (d.from + d.to) / 2, y: "value", z: (d) => d.trial.index, stroke: binColour, strokeWidth: 2 }),
    binTip(median, (d) => `median ${format.duration(d.value)}`),
  ], { y: { tickFormat: format.tick } });
}

function drawLevel(width, key, words) {
  const bins = binsOf(key);
  return lane(width, [
    Plot.rectY(bins, { x1: "from", x2: "to", y1: 0, y2: "value", fill: binColour, fillOpacity: 0.75 }),
    binTip(bins, (d) => `${format.number(d.value)} ${words}`),
  ], d3.max(bins, (d) => d.value) ? {} : { y: { domain: [0, 1] } });
}

function drawRunning(width) {
  const bins = binsOf("running"), limits = binsOf("limit");
  const middle = (d) => (d.from + d.to) / 2;
  const limitAt = new Map(limits.map((d) => [`${d.trial.index}/${d.from}`, d.value]));
  return lane(width, [
    Plot.rectY(bins, { x1: "from", x2: "to", y1: 0, y2: "value", fill: binColour, fillOpacity: 0.4 }),
    Plot.line(limits, { x: middle, y: "value", z: (d) => d.trial.index, stroke: binColour, strokeWidth: 2, curve: "step" }),
    binTip(bins, (d) => {
      const limit = limitAt.get(`${d.trial.index}/${d.from}`);
      return `${format.number(d.value)} calls running${limit === undefined ? "" : `, limit ${format.number(limit)}`}`;
    }),
  ], d3.max(bins, (d) => d.value) ? {} : { y: { domain: [0, 1] } });
}

function drawLimited(width) {
  const bins = binsOf("limited");
  return lane(width, [
    Plot.rectY(bins.filter((d) => d.value), { x1: "from", x2: "to", y1: 0, y2: "value", fill: report.phases.failed }),
    ...(d3.max(bins, (d) => d.value) ? [] : [Plot.text(["none"], { frameAnchor: "middle", text: (d) => d, fill: "var(--soft)" })]),
    binTip(bins, (d) => `${format.number(d.value)}/s refused with 429`),
  ], d3.max(bins, (d) => d.value) ? {} : { y: { domain: [0, 1] } });
}

function installCourse() {
  if (!course.trials.length) return;
  frame.add("lane-trials", drawTrials);
  frame.add("lane-completions", drawCompletions);
  frame.add("lane-median", drawLatencies);
  frame.add("lane-in_flight", (width) => drawLevel(width, "in_flight", "loops in flight"));
  frame.add("lane-queued", (width) => drawLevel(width, "queued", "calls waiting"));
  frame.add("lane-running", drawRunning);
  frame.add("lane-limited", drawLimited);
}
