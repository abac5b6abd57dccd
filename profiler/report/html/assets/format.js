"use strict";
// Figures as the terminal prints them (profiler/report/text.py); a test compares the two.
const format = {
  number(value) {
    if (value === null || value === undefined) return "–";
    const size = Math.abs(value);
    return value.toFixed(size >= 99.95 ? 0 : size >= 9.995 ? 1 : 2);
  },
  duration(seconds, unit) {
    if (seconds === null || seconds === undefined) return "–";
    const shown = unit ?? (Math.abs(seconds) >= 0.9995 ? "s" : "ms");
    return `${format.number(shown === "s" ? seconds : seconds * 1000)} ${shown}`;
  },
  percent(share) {
    if (share === null || share === undefined) return "–";
    const value = share * 100;
    if (value > 0 && value < 0.1) return "<0.1 %";
    return value > 0 && value < 9.95 ? `${value.toFixed(1)} %` : `${value.toFixed(0)} %`;
  },
  // A duration at a tick of an axis, as short as it can be.
  tick(seconds) {
    if (seconds === 0) return "0";
    if (seconds < 1e-3) return `${+(seconds * 1e6).toPrecision(3)} µs`;
    return seconds < 1 ? `${+(seconds * 1000).toPrecision(3)} ms` : `${+seconds.toPrecision(4)} s`;
  },
  cut(text, longest) {
    // The middle goes: settings of an agent (max_concurrent_calls=8) differ at their ends.
    if (text.length <= longest) return text;
    const end = Math.max(0, Math.floor((longest - 1) / 2));
    return `${text.slice(0, Math.max(1, longest - 1 - end))}…${end ? text.slice(-end) : ""}`;
  },
};
