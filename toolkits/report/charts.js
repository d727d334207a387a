"use strict";
const report = JSON.parse(document.getElementById("data").textContent);
const tip = document.getElementById("tip");
const view = { axis: "step", smooth: 0, hidden: new Set() };
const COLOURS = 8;
const DASHES = ["", "6 3", "2 3", "8 3 2 3", "1 2"]; // of lines of several groups, and beyond the colours
const dashOf = (number, several) => DASHES[(several ? number : Math.floor(number / COLOURS)) % DASHES.length];
const MARGIN = { left: 52, right: 10, top: 8, bottom: 30 };

function make(tag, settings = {}, ...children) {
  const svg = ["svg", "path", "line", "text", "circle", "g", "rect"].includes(tag);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(settings)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

function shown(value) {
  if (value === null || value === undefined) return "-";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e7)) return value.toExponential(2).replace(/\.?0+e/, "e").replace("e+", "e");
  if (size >= 1e4) return Math.round(value).toLocaleString("en");
  return String(Number(value.toPrecision(4)));
}

function showTip(text, x, y) {
  tip.textContent = text;
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  tip.style.left = Math.max(4, x + 14 + box.width > innerWidth ? x - box.width - 14 : x + 14) + "px";
  tip.style.top = Math.max(4, Math.min(y + 14, innerHeight - box.height - 6)) + "px";
}

// Where a step stands on the axis: the step itself, or its epoch between two known ones.
function place(group, step) {
  const epochs = report.groups[group].epochs;
  if (view.axis === "step" || !epochs) return step;
  const [steps, values] = epochs;
  let right = steps.findIndex((known) => known >= step);
  if (right === 0) return values[0];
  if (right < 0) right = steps.length - 1;
  if (right === 0) return values[0];
  const share = (step - steps[right - 1]) / (steps[right] - steps[right - 1]);
  return values[right - 1] + share * (values[right] - values[right - 1]);
}

function smoothed(values, weight) {
  let mean = 0, sum = 0;
  return values.map((value) => {
    if (value === null) return null;
    mean = weight * mean + (1 - weight) * value;
    sum = weight * sum + (1 - weight);
    return mean / sum;
  });
}

// The lines of a panel that are drawn now, with their places, colours and dashes.
function curvesOf(panel, groups) {
  const several = report.groups.length > 1 && !panel.stacked;
  const curves = [];
  panel.lines.forEach((line, number) => line.series.forEach((series, group) => {
    if (!series || !groups.includes(group)) return;
    const ends = series.e || series.x;
    curves.push({
      series, group,
      label: several ? (panel.lines.length > 1 ? report.groups[group].label + ": " + line.label : report.groups[group].label) : line.label,
      colour: `var(--c${(several ? group : number) % COLOURS})`,
      dash: dashOf(number, several),
      x: series.x.map((step, index) => place(group, (step + ends[index]) / 2)),
      y: series.y, smooth: view.smooth > 0 && series.y.length > 2 && !panel.stacked ? smoothed(series.y, view.smooth) : null,
    });
  }));
  return curves;
}

function ticks(low, high, count) {
  const rough = (high - low) / count, power = Math.pow(10, Math.floor(Math.log10(rough)));
  const step = [1, 2, 5, 10].find((factor) => factor * power >= rough) * power;
  const found = [];
  for (let value = Math.ceil(low / step - 1e-9) * step; value <= high + step * 1e-9; value += step) found.push(Math.abs(value) < step * 1e-9 ? 0 : value);
  return found;
}

// Powers of ten where there are several in sight, else those times 1, 2 and 5, else round values.
function logTicks(low, high) {
  const first = Math.floor(low), last = Math.ceil(high), every = Math.max(1, Math.ceil((last - first) / 5));
  const powers = [], finer = [];
  for (let power = first; power <= last; power += 1) {
    if ((power - first) % every === 0) powers.push(power);
    finer.push(...[1, 2, 5].map((factor) => power + Math.log10(factor)));
  }
  const rounds = () => ticks(Math.pow(10, low), Math.pow(10, high), 4).filter((value) => value > 0).map(Math.log10);
  const inside = (values) => values.filter((value) => value >= low && value <= high);
  return [powers, finer].map(inside).find((values) => values.length >= 3) || rounds();
}

function yRange(panel, curves, log) {
  const values = [];
  for (const { series } of curves) for (const part of [series.y, series.lo || [], series.hi || []]) {
    for (const value of part) if (value !== null && (!log || value > 0)) values.push(log ? Math.log10(value) : value);
  }
  let low = values.reduce((a, b) => Math.min(a, b), Infinity), high = values.reduce((a, b) => Math.max(a, b), -Infinity);
  if (!values.length) [low, high] = [0, 1];
  if (panel.share) { low = Math.min(0, low); high = high > 0 ? Math.min(Math.max(high * 1.05, high), Math.max(1, high)) : 1; }
  if (low === high) { const pad = log ? 0.5 : Math.abs(low) * 0.1 || 0.5; low -= pad; high += pad; }
  const pad = panel.share ? 0 : (high - low) * 0.05;
  return [low - pad, high + pad];
}

function path(points) {
  let text = "", open = false;
  for (const [x, y] of points) {
    if (y === null || !Number.isFinite(y)) { open = false; continue; }
    text += (open ? "L" : "M") + x.toFixed(1) + " " + y.toFixed(1);
    open = true;
  }
  return text;
}

function areas(xs, lows, highs) {
  let text = "", run = [];
  const close = () => {
    if (run.length > 1) text += path(run.map(([x, low]) => [x, low])) + path([...run].reverse().map(([x, , high]) => [x, high])).replace("M", "L") + "Z";
    run = [];
  };
  xs.forEach((x, index) => {
    if (lows[index] === null || highs[index] === null) close();
    else run.push([x, lows[index], highs[index]]);
  });
  close();
  return text;
}

function stackTotals(curves) {
  const count = curves.length ? curves[0].y.length : 0;
  let base = new Array(count).fill(0);
  for (const curve of curves) {
    curve.low = base;
    curve.high = base.map((value, index) => value + (curve.y[index] || 0));
    base = curve.high;
  }
  return base;
}

function drawPlot(host, panel, groups) {
  const width = Math.max(240, host.clientWidth), height = host.closest(".small") ? 150 : 230;
  const curves = curvesOf(panel, groups);
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", tabindex: "0", "aria-label": spoken(panel, curves) });
  host.replaceChildren(svg);
  const xs = curves.flatMap((curve) => curve.x);
  if (!xs.length) { svg.append(make("text", { x: 10, y: 30 }, "nothing to draw")); return; }
  let x0 = xs.reduce((a, b) => Math.min(a, b)), x1 = xs.reduce((a, b) => Math.max(a, b));
  if (x0 === x1) { x0 -= 0.5; x1 += 0.5; }
  const log = panel.log && curves.some((curve) => curve.y.some((value) => value > 0));
  const totals = panel.stacked ? stackTotals(curves) : null;
  const [y0, y1] = totals ? [0, totals.reduce((a, b) => Math.max(a, b), 0) * 1.05 || 1] : yRange(panel, curves, log);
  const right = width - MARGIN.right, bottom = height - MARGIN.bottom;
  const px = (value) => MARGIN.left + (value - x0) / (x1 - x0) * (right - MARGIN.left);
  const py = (value) => value === null || (log && value <= 0) ? null : bottom - ((log ? Math.log10(value) : value) - y0) / (y1 - y0) * (bottom - MARGIN.top);
  drawAxes(svg, { x0, x1, y0, y1, px, log, right, bottom });
  for (const curve of curves) drawCurve(svg, curve, px, py, panel.stacked, Math.min(1, 4 / curves.length));
  hover(svg, panel, curves, px, py, width, bottom);
}

function drawAxes(svg, { x0, x1, y0, y1, px, log, right, bottom }) {
  for (const value of log ? logTicks(y0, y1) : ticks(y0, y1, 5)) {
    const y = bottom - (value - y0) / (y1 - y0) * (bottom - MARGIN.top);
    svg.append(make("line", { class: "grid", x1: MARGIN.left, x2: right, y1: y, y2: y }),
      make("text", { x: MARGIN.left - 6, y: y + 4, "text-anchor": "end" }, shown(log ? Number(Math.pow(10, value).toPrecision(3)) : value)));
  }
  for (const value of ticks(x0, x1, 6)) {
    if (view.axis === "step" && !Number.isInteger(Number(value.toFixed(6)))) continue;
    const edge = px(value) > right - 16;
    svg.append(make("text", { x: edge ? right + 6 : px(value), y: bottom + 15, "text-anchor": edge ? "end" : "middle" }, shown(value)));
  }
  svg.append(make("line", { class: "grid", x1: MARGIN.left, x2: right, y1: bottom, y2: bottom }),
    make("text", { x: right, y: bottom + 28, "text-anchor": "end" }, view.axis));
}

function drawCurve(svg, curve, px, py, stacked, faint) { // faint: of bands, since many would hide the lines
  const xs = curve.x.map(px), style = `stroke:${curve.colour};fill:none`;
  if (stacked) {
    const wide = xs.length > 1 ? xs : [MARGIN.left, xs[0] * 2 - MARGIN.left];
    const at = (values) => (xs.length > 1 ? values : [values[0], values[0]]).map(py);
    svg.append(make("path", { class: "curve", d: areas(wide, at(curve.low), at(curve.high)), style: `fill:${curve.colour}`, opacity: 0.8 }));
    return;
  }
  const { lo, hi } = curve.series;
  if (lo && xs.length > 1) svg.append(make("path", { class: "band", d: areas(xs, lo.map((value) => value === null ? null : py(value) ?? py(curve.y.find((one) => one > 0))), hi.map(py)), style: `fill:${curve.colour}`, opacity: 0.16 * faint }));
  if (lo && xs.length <= 12) lo.forEach((value, index) => {
    if (value !== null && hi[index] !== null && py(value) !== null) svg.append(make("line", { x1: xs[index], x2: xs[index], y1: py(value), y2: py(hi[index]), style, opacity: 0.6 * faint }));
  });
  const line = (values, opacity) => svg.append(make("path", { class: "curve", d: path(xs.map((x, index) => [x, py(values[index])])), style, "stroke-width": 1.7, "stroke-dasharray": curve.dash, "stroke-linejoin": "round", opacity }));
  if (curve.smooth) line(curve.y, 0.25);
  line(curve.smooth || curve.y, 1);
  curve.y.forEach((value, index) => {
    const lone = (index === 0 || curve.y[index - 1] === null) && (index === xs.length - 1 || curve.y[index + 1] === null);
    if (value !== null && py(value) !== null && (xs.length <= 12 || lone)) svg.append(make("circle", { class: "curve", cx: xs[index], cy: py(value), r: 2.8, style: `fill:${curve.colour}` }));
  });
}

// What a screen reader says of a chart.
function spoken(panel, curves) {
  const ends = curves.slice(0, 8).map((curve) => {
    const known = curve.y.filter((value) => value !== null);
    return known.length ? `${curve.label}: from ${shown(known[0])} to ${shown(known[known.length - 1])}` : `${curve.label}: no values`;
  });
  return `${panel.title}. ${ends.join("; ")}`;
}

function nearest(xs, x) {
  let best = 0;
  for (let index = 1; index < xs.length; index += 1) if (Math.abs(xs[index] - x) < Math.abs(xs[best] - x)) best = index;
  return best;
}

function hover(svg, panel, curves, px, py, width, bottom) {
  const cross = make("line", { class: "cross", y1: MARGIN.top, y2: bottom, visibility: "hidden" });
  svg.append(cross);
  const all = [...new Set(curves.flatMap((curve) => curve.x))].sort((a, b) => a - b), pixels = all.map(px);
  let at = -1;
  const show = (index, clientX, clientY) => {
    at = Math.max(0, Math.min(all.length - 1, index));
    cross.setAttribute("x1", pixels[at]);
    cross.setAttribute("x2", pixels[at]);
    cross.setAttribute("visibility", "visible");
    showTip(said(panel, curves, all[at], px), clientX, clientY);
  };
  const hide = () => { tip.hidden = true; cross.setAttribute("visibility", "hidden"); };
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    show(nearest(pixels, (event.clientX - box.left) * width / box.width), event.clientX, event.clientY);
  });
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("blur", hide);
  svg.addEventListener("keydown", (event) => {
    if (event.key !== "ArrowRight" && event.key !== "ArrowLeft") return;
    event.preventDefault();
    const box = svg.getBoundingClientRect(), next = Math.max(0, Math.min(all.length - 1, at + (event.key === "ArrowRight" ? 1 : -1)));
    show(next, box.left + pixels[next] * box.width / width, box.top + 20);
  });
}

function said(panel, curves, x, px) {
  const rows = [];
  let steps = "";
  for (const curve of curves) {
    const index = nearest(curve.x, x);
    if (Math.abs(px(curve.x[index]) - px(x)) > 2) continue;
    const { series } = curve, end = series.e ? series.e[index] : series.x[index];
    steps = series.x[index] === end ? `step ${series.x[index]}` : `steps ${series.x[index]} to ${end}`;
    const band = series.lo && series.lo[index] !== null ? ` [${shown(series.lo[index])}, ${shown(series.hi[index])}]` : "";
    rows.push(`${curve.label}: ${shown(series.y[index])}${band}`);
  }
  const more = rows.length > 14 ? `\n.. and ${rows.length - 14} more` : "";
  const head = view.axis === "epoch" ? `epoch ${shown(x)}, ${steps}` : steps;
  const bands = [...new Set(curves.map((curve) => curve.series.band).filter(Boolean))];
  return [head, ...rows.slice(0, 14)].join("\n") + more + (bands.length ? `\n[band: ${bands.join("; ")}]` : "");
}

function legend(panel) {
  const several = report.groups.length > 1 && !panel.stacked;
  const keys = panel.lines.map((line, number) => {
    const style = several ? "stroke:var(--quiet)" : `stroke:var(--c${number % COLOURS})`;
    const swatch = make("svg", { width: 24, height: 10, "aria-hidden": "true" },
      make("line", { x1: 0, x2: 24, y1: 5, y2: 5, style, "stroke-width": panel.stacked ? 8 : 2.4, "stroke-dasharray": dashOf(number, several) }));
    return make("span", {}, swatch, line.label);
  });
  return make("div", { class: "legend" }, ...(panel.lines.length > 1 || panel.lines[0].label !== panel.title ? keys : []));
}

function addPanel(host, panel) {
  const apart = panel.stacked && report.groups.length > 1;
  const figure = make("figure", { id: "panel-" + panel.id, class: apart ? "whole" : null }, make("figcaption", {}, panel.title, panel.note ? make("p", { class: "quiet" }, panel.note) : null), legend(panel));
  host.append(figure);
  const row = make("div", { class: "row" });
  figure.append(row);
  const plots = (apart ? report.groups.map((_, group) => [group]) : [null]).map((only) => {
    const plot = make("div", { class: "plot" });
    row.append(make("div", {}, only ? make("p", { class: "quiet" }, report.groups[only[0]].label) : null, plot));
    return { plot, only };
  });
  return () => {
    const visible = report.groups.map((_, group) => group).filter((group) => !view.hidden.has(group));
    for (const { plot, only } of plots) drawPlot(plot, panel, only ? only.filter((group) => visible.includes(group)) : visible);
  };
}

function choice(title, name, options, chosen, onchange) {
  const inputs = options.map(([value, text]) => make("label", {}, make("input", { type: "radio", name, value, checked: value === chosen, onchange: () => onchange(value) }), text));
  return make("fieldset", {}, make("legend", {}, title), ...inputs);
}

function startCharts() {
  const main = report.panels.map((panel) => addPanel(document.getElementById("panels"), panel));
  const others = report.others.map((panel) => addPanel(document.getElementById("others"), panel));
  const box = document.getElementById("others-box");
  const draw = () => { for (const one of main) one(); if (box.open) for (const one of others) one(); };
  const bar = document.getElementById("curve-bar");
  if (others.length) {
    box.hidden = false;
    document.getElementById("others-title").textContent = `All other metrics (${others.length})`;
    box.addEventListener("toggle", draw);
  }
  if (!main.length) { bar.append(make("p", { class: "quiet" }, "There are no metrics on record.")); return; }
  if (report.groups.some((group) => group.epochs)) bar.append(choice("x axis", "axis", [["step", "step"], ["epoch", "epoch"]], view.axis, (value) => { view.axis = value; draw(); }));
  bar.append(make("label", {}, "smoothing", make("input", { type: "range", id: "smooth", min: 0, max: 0.95, step: 0.05, value: 0, oninput: (event) => { view.smooth = Number(event.target.value); draw(); } })));
  if (report.groups.length > 1) report.groups.forEach((group, number) => bar.append(make("label", {},
    make("input", { type: "checkbox", checked: true, onchange: (event) => { if (event.target.checked) view.hidden.delete(number); else view.hidden.add(number); draw(); } }),
    make("span", { class: "key", style: `border-color:var(--c${number % COLOURS})` }), group.runs > 1 ? `${group.label} (${group.runs} runs)` : group.label)));
  draw();
  let width = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; draw(); } });
}

startCharts();
