"use strict";
// Asks for the data every second while the page is visible, and shows it.

const COLOURS = { model: "#5560FE", server_tools: "#0CAAFE", model_queue: "#A56A12", backoff: "#CE0E0A", parse: "#D9A17F", tools: "#1F735A", queue: "#E67E00", collect: "#8B52B0", unaccounted: "#8A8F98" };
const id = (name) => document.getElementById(name);

function make(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function dot(colour) {
  const made = make("span", { className: "swatch" });
  made.style.setProperty("--c", colour);
  return made;
}

const named = (one, text) => [dot(one.colour), make("bdi", { textContent: text })];
const cell = (text) => make("td", { className: "n", textContent: text });

function show(data) {
  const now = data.now;
  if (now) {
    const left = now.left === null ? "" : `, ${Math.ceil(now.left)} s left`;
    const block = now.block ? `block ${now.block}${now.blocks ? ` of ${now.blocks}` : ""}, ` : "";
    id("facts").textContent = `${block}${now.strategy ? `${now.strategy}, ` : ""}${now.state}${left}`;
    const figures = [["agents", now.users], ["loops in flight", now.in_flight], ["calls waiting", now.waiting],
      ["answers with 429", now.limited], ["event-loop lag", format.duration(now.lag)]];
    id("now").replaceChildren(...figures.map(([term, value]) => make("div", {}, make("dt", { textContent: term }), make("dd", { textContent: value }))));
  }
  id("notes").replaceChildren(...data.notes.map((words) => make("li", { textContent: words })));
  id("strategies").tBodies[0].replaceChildren(...data.strategies.map((one) => make("tr", {},
    make("th", { scope: "row" }, ...named(one, one.name)), cell(one.loops), cell(one.failed), cell(one.incomplete),
    cell(format.duration(one.p50)), cell(format.duration(one.p95)))));
  id("tools").tBodies[0].replaceChildren(...data.tools.map((one) => make("tr", {},
    make("th", { scope: "row" }, make("bdi", { textContent: one.name })), make("td", {}, ...named(one, one.strategy)),
    cell(one.calls), cell(one.errors), cell(format.duration(one.p50)), cell(format.duration(one.p95)), cell(format.duration(one.queue_p95)))));
  phases(data.strategies);
  spark("spark-waiting", data.progress.map((point) => point.waiting));
  spark("spark-lag", data.progress.map((point) => point.lag * 1000));
}

function phases(strategies) {
  const means = strategies.map((one) => Object.values(one.phases).reduce((a, b) => a + b, 0));
  const most = Math.max(...means, 1e-9);
  const seen = Object.keys(COLOURS).filter((phase) => strategies.some((one) => one.phases[phase] > 0.001 * most));
  id("legend").replaceChildren(...seen.map((phase) => make("li", {}, dot(COLOURS[phase]), phase.replace("_", " "))));
  id("phases").replaceChildren(...strategies.map((one, place) => {
    const words = Object.entries(one.phases).filter(([phase]) => seen.includes(phase)).map(([phase, s]) => `${phase} ${format.duration(s)}`).join(", ");
    const parts = Object.entries(one.phases).map(([phase, seconds]) => {
      const part = make("span", { title: `${phase} ${format.duration(seconds)}` });
      part.style.width = `${(100 * seconds) / most}%`;
      part.style.background = COLOURS[phase];
      return part;
    });
    return make("div", {}, make("div", {}, ...named(one, one.name), ` ${format.duration(means[place])}`, make("span", { className: "below", textContent: words })),
      make("div", { className: "stack", ariaHidden: "true" }, ...parts));
  }));
}

function spark(name, values) {
  const canvas = id(name), ratio = devicePixelRatio || 1;
  const width = (canvas.width = canvas.clientWidth * ratio), height = (canvas.height = canvas.clientHeight * ratio);
  const pen = canvas.getContext("2d"), most = Math.max(...values, 1);
  const style = getComputedStyle(canvas);
  pen.strokeStyle = style.color;
  pen.lineWidth = 1.5 * ratio;
  pen.beginPath();
  values.forEach((value, place) => {
    const x = (place / Math.max(1, values.length - 1)) * width, y = height - 2 - (value / most) * (height - 18 * ratio);
    if (place) pen.lineTo(x, y); else pen.moveTo(x, y);
  });
  pen.stroke();
  pen.fillStyle = getComputedStyle(document.body).color;
  pen.font = `${11 * ratio}px ${style.fontFamily}`;
  pen.fillText(`up to ${format.number(most)}`, 2, 12 * ratio);
}

async function poll() {
  if (!document.hidden) {
    try {
      const answer = await fetch("./tool-loops/data", { cache: "no-store" });
      if (answer.redirected) location.reload(); // to the login page: the session has ended
      else if (answer.ok) show(await answer.json());
    } catch {
      id("facts").textContent = "Locust does not answer.";
    }
  }
  setTimeout(poll, 1000);
}
poll();
