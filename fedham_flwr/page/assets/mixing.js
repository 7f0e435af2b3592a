// Whom each client listens to: a heat map of the weights of one layer group in one round.
draws("mixing-figure", report.mixing, (figure, controls, data) => {
  const said = (run) => [report.methods[run.method].label, report.tasks.length > 1 && report.tasks[run.task], `seed ${report.seeds[run.seed]}`];
  const labels = data.runs.map((run) => said(run).filter(Boolean).join(", "));
  const at = choice(controls, "run", labels);
  const select = controls.querySelector("select[name='run']");
  select.parentNode.hidden = false;
  const groups = [...new Set(data.runs.flatMap((run) => run.groups))];
  const bytes = new Map(data.runs.map((run) => [run, Uint8Array.from(atob(run.weights), (sign) => sign.charCodeAt(0))]));
  const group = choice(controls, "layer group", groups, groups.indexOf(uneven(data.runs[0], bytes.get(data.runs[0]))));
  const own = boxes(controls, "", ["own weight", "numbers"], false);
  own();
  controls.querySelectorAll("fieldset").forEach((set) => { set.hidden = false; });
  const numbersBox = controls.querySelectorAll("fieldset label")[1];
  const run = () => data.runs[at()];
  const round = slider(controls, "round", () => run().rounds.length, (place) => `${run().rounds[place]} of ${run().rounds.at(-1)}`);
  return () => {
    const it = run();
    const layer = Math.max(0, it.groups.indexOf(groups[group()]));
    const [diagonal, numbers] = [0, 1].map((place) => own().includes(place));
    const z = square(it, bytes.get(it), round(), layer, diagonal);
    numbersBox.hidden = !fits(it);
    const highest = diagonal ? it.highest : it["highest-other"];
    const lack = it.groups.includes(groups[group()]) ? "" : `This run has no layer group ${groups[group()]}: shown is ${it.groups[0]}.`;
    return { ...map(it, z, highest, numbers), said: lack || strongest(it, z) };
  };
});

// The layer group whose weights of others differ most in the last round.
function uneven(run, bytes) {
  const range = run.groups.map((_, layer) => {
    const there = square(run, bytes, run.rounds.length - 1, layer, false).flat().filter((weight) => weight !== null);
    return Math.max(...there) - Math.min(...there);
  });
  return run.groups[range.indexOf(Math.max(...range))];
}

function square(run, bytes, round, layer, diagonal) {
  const [rows, columns] = [run.clients.length, run.peers.length];
  const start = (round * run.groups.length + layer) * rows * columns;
  return run.clients.map((client, row) => run.peers.map((peer, column) => {
    const byte = bytes[start + row * columns + column];
    return byte === 255 || (client === peer && !diagonal) ? null : (byte / 254) * run.highest;
  }));
}

function strongest(run, z) {
  let best = null;
  z.forEach((row, i) => row.forEach((weight, j) => {
    if (weight !== null && run.clients[i] !== run.peers[j] && (!best || weight > best.weight)) best = { weight, i, j };
  }));
  return best ? `The largest weight of another: client ${run.clients[best.i]} gives client ${run.peers[best.j]} ${best.weight.toFixed(3)}.` : "";
}

function width() {
  return Math.min(document.getElementById("mixing-figure").clientWidth, 620);
}

// Whether cells are large enough for numbers in them.
function fits(run) {
  return run.peers.length <= 12 && width() > 480;
}

function map(run, z, highest, numbers) {
  const [x, y] = [run.peers, run.clients].map((names) => names.map((_, at) => at));
  const text = z.map((row, i) => row.map((weight, j) => `client ${plain(run.clients[i])}<br>of ${plain(run.peers[j])}: ${weight === null ? "–" : weight.toFixed(3)}`));
  const side = width();
  const inside = numbers && fits(run);
  const ticks = (names) => {
    const step = Math.ceil(names.length / 24);
    const shown = names.map((_, at) => at).filter((at) => at % step === 0);
    const short = (name) => plain(name.length > 12 ? `${name.slice(0, 4)}…${name.slice(-7)}` : name);
    return { tickvals: shown, ticktext: shown.map((at) => short(names[at])), showgrid: false, zeroline: false, constrain: "domain" };
  };
  return {
    traces: [{ type: "heatmap", x, y, z, zmin: 0, zmax: highest, colorscale: "Viridis", xgap: 1, ygap: 1, text, hovertemplate: "%{text}<extra></extra>",
      colorbar: { title: { text: "weight", side: "right" }, thickness: 12, outlinewidth: 0, tickfont: { color: css("--ink") } } },
    ...(inside ? [numbered(z, highest)] : [])],
    layout: { height: side * 0.86, width: side, autosize: false, xaxis: axis("whom it listens to", { ...ticks(run.peers), scaleanchor: "y" }),
      yaxis: axis("client", { ...ticks(run.clients), autorange: "reversed" }) },
  };
}

function numbered(z, highest) {
  const cells = z.flatMap((row, y) => row.flatMap((weight, x) => (weight === null ? [] : [{ x, y, weight }])));
  return { x: cells.map((cell) => cell.x), y: cells.map((cell) => cell.y), mode: "text", hoverinfo: "skip",
    text: cells.map((cell) => cell.weight.toFixed(2).replace(/^0/, "")),
    textfont: { size: 11, color: cells.map((cell) => (cell.weight / highest > 0.6 ? "#10151a" : "#ffffff")) } };
}
