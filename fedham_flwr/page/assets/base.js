const report = JSON.parse(document.getElementById("data").textContent);
const root = document.documentElement;
root.classList.add("scripts");

// Okabe and Ito's colours, told apart with every kind of colour vision; dashes and marks differ as well.
const COLOURS = {
  light: ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"],
  dark: ["#3E9BDB", "#EE7D33", "#1DBE91", "#DF9BC1", "#F0B52E", "#8CCBF0"],
};
const FLOOR = { light: "#5F6670", dark: "#A9B2BC" };
const DASHES = ["solid", "dash", "dashdot", "longdash", "6px 2px 2px 2px", "longdashdot"];
const MARKS = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "star", "pentagon", "hexagram", "x"];
const FLOOR_DASHES = ["dot", "2px 5px"];
const GLYPHS = { circle: "●", square: "■", "triangle-up": "▲", diamond: "◆", cross: "✚", "triangle-down": "▼",
  star: "★", pentagon: "⬟", hexagram: "✶", x: "✖" };

const isDark = () => root.dataset.theme === "dark"
  || (root.dataset.theme !== "light" && matchMedia("(prefers-color-scheme: dark)").matches);
let printing = false;
const theme = () => (isDark() && !printing ? "dark" : "light");
const css = (name) => getComputedStyle(root).getPropertyValue(name).trim();

function look(method) {
  const { floor, place } = report.methods[method];
  const colours = COLOURS[theme()];
  return floor
    ? { colour: FLOOR[theme()], dash: FLOOR_DASHES[place % 2], mark: MARKS[(place + 8) % 10] }
    : { colour: colours[place % colours.length], dash: DASHES[(place + Math.floor(place / 6)) % 6], mark: MARKS[place % 10] };
}

// What a name says is text; plotly would read tags in it.
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
// A label that fits beside an axis; labels with settings differ towards their ends.
const brief = (text, most = 28) => plain(text.length > most ? `${text.slice(0, most / 2 - 1)}…${text.slice(-most / 2)}` : text);
const digits = (value) => (value === null || value === undefined ? "–"
  : report.bounded ? `${(100 * value).toFixed(2)} %` : Number(value.toPrecision(4)).toString());
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
const faded = (colour, share) => colour + Math.round(share * 255).toString(16).padStart(2, "0");
const unit = (by) => ({ round: "round", bytes: "MiB sent by training, up and down", seconds: "seconds" })[by];

const drawn = [];
function draws(id, data, build) {
  const figure = document.getElementById(id);
  if (!figure || !data) return;
  const place = figure.querySelector(".plot");
  const draw = build(figure, figure.querySelector(".controls"), data);
  const redraw = () => {
    const { traces, layout, said } = draw();
    const line = figure.querySelector(".said");
    if (line) line.textContent = said || "";
    Plotly.react(place, traces, { ...base(place, layout.height), ...layout }, {
      responsive: true, displaylogo: false, modeBarButtons: [["toImage", "resetScale2d"]], toImageButtonOptions: { filename: id, scale: 2 },
    });
  };
  figure.addEventListener("change", redraw);
  figure.addEventListener("input", (event) => { if (event.target.type === "range") redraw(); });
  drawn.push(redraw);
  redraw();
}

function axis(title, more) {
  return { title: { text: title, standoff: 8 }, gridcolor: css("--line"), zerolinecolor: css("--line"), linecolor: css("--soft"),
    automargin: true, ticks: "outside", tickcolor: css("--line"), ...more };
}

// An axis of scores, in percent if they are fractions.
const scores = (title, more) => axis(title, { ...(report.bounded ? { tickformat: ".2~%" } : {}), ...more });

function base(place, height) {
  const narrow = place.clientWidth < 560;
  return { height: height || (narrow ? 320 : 400), width: printing ? 660 : undefined, autosize: !printing, showlegend: false,
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", margin: { l: 10, r: 14, t: 30, b: 10 }, hovermode: "closest",
    modebar: { bgcolor: "rgba(0,0,0,0)", color: css("--soft"), activecolor: css("--accent") },
    hoverlabel: { bgcolor: css("--panel"), bordercolor: css("--line"), font: { color: css("--ink") } }, dragmode: false,
    font: { family: getComputedStyle(document.body).fontFamily, size: narrow ? 11 : 13, color: css("--ink") } };
}

function made(tag, parent, properties) {
  const element = Object.assign(document.createElement(tag), properties);
  parent.append(element);
  return element;
}

function choice(controls, name, options, first) {
  const label = made("label", controls, { textContent: name, hidden: options.length < 2 });
  const select = made("select", label, { name });
  options.forEach((text, at) => made("option", select, { textContent: text, value: at }));
  if (first > 0) select.value = first;
  return () => Number(select.value || 0);
}

function boxes(controls, name, options, swatch, off) {
  const group = made("fieldset", controls, { hidden: options.length < 2 });
  made("legend", group, { textContent: name });
  const all = options.map((text, at) => {
    const label = made("label", group);
    const box = made("input", label, { type: "checkbox", checked: !(off && off(at)), name: `${name} ${text}` });
    if (swatch) drawn.push(paint.bind(null, made("span", label), at));
    label.append(text);
    const mark = () => label.classList.toggle("off", !box.checked);
    box.addEventListener("change", mark);
    mark();
    return box;
  });
  return () => all.flatMap((box, at) => (box.checked ? [at] : []));
}

function paint(span, method) {
  const { colour, dash, mark } = look(method);
  const pattern = { solid: "", dash: "7 4", dashdot: "7 3 2 3", longdash: "11 4", longdashdot: "11 3 2 3", dot: "2 3" }[dash];
  span.innerHTML = `<svg class="swatch" viewBox="0 0 34 14" aria-hidden="true"><line x1="0" x2="34" y1="7" y2="7" stroke="${colour}"`
    + ` stroke-width="2" stroke-dasharray="${pattern ?? dash.replace(/px/g, "")}"/><text x="17" y="11.5" text-anchor="middle"`
    + ` font-size="13" fill="${colour}">${GLYPHS[mark]}</text></svg>`;
}

function slider(controls, name, count, shown) {
  const label = made("label", controls, { textContent: name, hidden: count() < 2 });
  const range = made("input", label, { type: "range", min: 0, max: count() - 1, value: count() - 1, step: 1, name });
  const output = made("output", label);
  return () => {
    range.max = count() - 1;
    label.hidden = count() < 2;
    output.textContent = shown(Number(range.value));
    range.setAttribute("aria-valuetext", output.textContent);
    return Number(range.value);
  };
}
