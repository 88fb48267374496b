// Elements and words. All text goes in as text nodes: nothing that a user wrote is ever read as HTML.

export const byId = (id) => document.getElementById(id);

// An element. attributes: by name; `class` too. children: elements, texts, or null for nothing.
export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined).map(textOr));
  return element;
}

const textOr = (child) => (child instanceof Node ? child : document.createTextNode(String(child)));

export function show(id, ...children) {
  byId(id).replaceChildren(...children.flat().filter((child) => child !== null).map(textOr));
}

// A bar of shares. parts: [{name, value, kind}]; kind is a class. whole: what the full width stands for.
export function bar(parts, whole, label) {
  const drawn = parts.filter((part) => part.value > 0).map((part) => {
    const segment = el("span", { class: `segment ${part.kind}`, title: part.title ?? part.name });
    segment.style.width = `${whole > 0 ? Math.min(100 * part.value / whole, 100) : 0}%`;
    return segment;
  });
  return el("div", { class: "bar", role: "img", "aria-label": label }, drawn);
}

export function legend(parts) {
  return el("ul", { class: "legend" }, parts.map((part) =>
    el("li", {}, el("span", { class: `dot ${part.kind}`, "aria-hidden": "true" }), part.name)));
}

const SVG = "http://www.w3.org/2000/svg";

// A line of the last values, 0 at the bottom.
export function sparkline(values, label) {
  const width = 120, height = 28, most = Math.max(1, ...values);
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("class", "spark");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", label);
  const line = document.createElementNS(SVG, "polyline");
  const step = width / Math.max(values.length - 1, 1);
  line.setAttribute("points", values.map((value, place) =>
    `${(place * step).toFixed(1)},${(height - 2 - (height - 4) * value / most).toFixed(1)}`).join(" "));
  svg.append(line);
  return svg;
}

export function table(headings, rows, caption) {
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    el("table", {},
      el("thead", {}, el("tr", {}, headings.map((heading) => el("th", { scope: "col" }, heading)))),
      el("tbody", {}, rows.map((row) => el("tr", { class: row.class ?? null },
        row.cells.map((cell, place) => el(place ? "td" : "th", place ? {} : { scope: "row" }, cell)))))));
}

const NUMBER = new Intl.NumberFormat("en");
export const number = (value) => NUMBER.format(Math.round(value));
export const plural = (value, noun, more) => `${number(value)} ${value === 1 ? noun : more ?? `${noun}s`}`;
export function percent(part, whole) {
  const share = whole > 0 ? 100 * part / whole : 0;
  return share > 0 && share < 0.5 ? "<1 %" : `${Math.round(share)} %`;
}

export function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let place = 0;
  while (value >= 1024 && place < units.length - 1) { value /= 1024; place += 1; }
  return `${place === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)} ${units[place]}`;
}

export function seconds(value) {
  if (value < 0.00005) return "0 ms";
  if (value < 0.0995) return `${(1000 * value).toFixed(value < 0.00995 ? 1 : 0)} ms`;
  return `${value.toFixed(value < 9.95 ? 2 : value < 99.5 ? 1 : 0)} s`;
}

export const ms = (value) => `${value < 9.95 ? value.toFixed(1) : number(value)} ms`;

export function ago(value) {
  if (value < 60) return `${Math.round(value)} s ago`;
  if (value < 3600) return `${Math.round(value / 60)} min ago`;
  return `${Math.round(value / 3600)} h ago`;
}
