// DOM and charts by hand: elements get text, never markup, so nothing that a request carried can become part of the page.
"use strict";

/** An element. `attributes` may hold `on…` functions; children are nodes or text; null children are left out. */
function element(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function drawn(tag, attributes, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined) continue;
    node.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return node;
}

const PLOT = { left: 8, right: 8, top: 18, bottom: 24 };

/** A round number at or above `value`, whose half is round too. */
function roundUp(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 4, 6, 8, 10].map((factor) => factor * power).find((candidate) => candidate >= value * 0.9999);
}

/**
 * Stacked bars over time. `series` is [{name, className, values}], one value per bucket; negative values hang below zero.
 * Heights are floats: a drawing, never a sum; what is said in words comes from `describe(bucket index)`.
 */
function stackedBars({ width, height, starts, series, label, axis, describe, time, integers }) {
  const sums = starts.map((_, index) => ({
    up: series.reduce((sum, { values }) => sum + Math.max(0, values[index]), 0),
    down: series.reduce((sum, { values }) => sum + Math.min(0, values[index]), 0),
  }));
  const most = Math.max(...sums.map(({ up }) => up), 0);
  const least = Math.min(...sums.map(({ down }) => down), 0);
  const peak = Math.max(most, -least);
  const top = peak > 0 ? (integers ? Math.max(2, roundUp(peak)) : roundUp(peak)) : 1;
  const floor = least < 0 ? -top : 0;
  const plot = { width: width - PLOT.left - PLOT.right, height: height - PLOT.top - PLOT.bottom };
  const y = (value) => PLOT.top + plot.height * (1 - (value - floor) / (top - floor));
  const step = plot.width / starts.length;
  const bar = Math.max(1, Math.min(step - Math.min(2, step * 0.2), 48));
  const picture = drawn("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  for (const tick of least < 0 ? [top, 0, -top] : [top, top / 2, 0]) {
    picture.append(drawn("line", { class: "grid", x1: PLOT.left, x2: width - PLOT.right, y1: y(tick), y2: y(tick) }));
    if (tick !== 0) picture.append(drawn("text", { class: "axis", x: PLOT.left, y: y(tick) - 4 }, axis(tick)));
  }
  starts.forEach((_, index) => {
    const x = PLOT.left + step * index + (step - bar) / 2;
    let [above, below] = [0, 0];
    const group = drawn("g", {}, drawn("title", {}, describe(index)));
    // The whole column answers to the pointer, not only its painted part.
    group.append(drawn("rect", { class: "column", x: PLOT.left + step * index, y: PLOT.top, width: step, height: plot.height }));
    for (const { className, values } of series) {
      const value = values[index];
      if (value === 0) continue;
      const [from, to] = value > 0 ? [above, above + value] : [below, below + value];
      const upper = y(Math.max(from, to));
      const size = Math.max(0.75, y(Math.min(from, to)) - upper);
      group.append(drawn("rect", { class: className, x, width: bar, y: upper, height: size }));
      if (value > 0) above = to;
      else below = to;
    }
    picture.append(group);
  });
  const marks = Math.max(2, Math.min(7, Math.floor(width / 110)));
  for (let mark = 0; mark < marks; mark += 1) {
    const index = Math.round(((starts.length - 1) * mark) / (marks - 1));
    const anchor = mark === 0 ? "start" : mark === marks - 1 ? "end" : "middle";
    const x = mark === 0 ? PLOT.left : mark === marks - 1 ? width - PLOT.right : PLOT.left + step * (index + 0.5);
    picture.append(drawn("text", { class: "axis", x, y: height - 8, "text-anchor": anchor }, time(starts[index])));
  }
  return picture;
}

/** The score on a line from 0 to 1, the threshold as a gate on it. */
function scoreScale(value, threshold, label) {
  const x = (share) => 6 + 228 * share;
  const picture = drawn("svg", { class: "scale", viewBox: "0 0 240 34", role: "img", "aria-label": label });
  picture.append(drawn("rect", { class: "rail", x: 6, y: 14, width: 228, height: 6, rx: 3 }));
  if (threshold !== null) {
    const at = x(Math.min(1, threshold));
    picture.append(drawn("rect", { class: "open", x: at, y: 14, width: Math.max(0, 234 - at), height: 6, rx: 3 }));
    picture.append(drawn("line", { class: "gate", x1: at, x2: at, y1: 7, y2: 27 }));
  }
  if (value !== null) picture.append(drawn("circle", { class: "point", cx: x(value), cy: 17, r: 6 }));
  return picture;
}

/** A bar of shares of a limit. */
function meter(parts, label) {
  const picture = drawn("svg", { class: "meter", viewBox: "0 0 100 6", preserveAspectRatio: "none", role: "img", "aria-label": label });
  picture.append(drawn("rect", { class: "rail", x: 0, y: 0, width: 100, height: 6 }));
  let at = 0;
  for (const { className, share } of parts) {
    const size = Math.max(0, Math.min(100 - at, share * 100));
    if (size > 0) picture.append(drawn("rect", { class: className, x: at, y: 0, width: size, height: 6 }));
    at += size;
  }
  return picture;
}
