// Each client's score with a method, against that with the reference, or before against after its local training.
draws("clients-figure", report.clients, (figure, controls, data) => {
  const first = report.methods.findIndex((method) => !method.floor && method.label !== data.reference);
  const task = choice(controls, "task", report.tasks);
  const method = choice(controls, "method", report.methods.map((each) => each.label), first);
  const against = choice(controls, "against", data.against.map((name) => (name === "before" ? "itself before local training" : name)));
  const view = choice(controls, "as", ["points and a diagonal", "a line for each client"]);
  const seeds = choice(controls, "seeds", ["mean of all", ...report.seeds.map((seed) => `seed ${seed}`)], data.apart ? 1 : 0);
  return () => {
    const itself = data.against[against()] === "before";
    const other = itself ? method() : report.methods.findIndex((each) => each.label === data.reference);
    const chosen = seeds() === 0 ? report.seeds.map((_, at) => at) : [seeds() - 1];
    const [y, x] = [[method(), itself ? "after" : "own"], [other, itself ? "before" : "own"]]
      .map(([which, phase]) => values(data, task(), which, phase, chosen));
    const names = data.names[task()];
    const both = names.flatMap((name, at) => (x[at] === null || y[at] === null ? [] : [{ name, x: x[at], y: y[at] }]));
    const labels = itself ? ["before local training", "after local training"] : [data.reference, report.methods[method()].label];
    const build = view() === 0 ? scattered : dumbbells;
    return { ...build(both, labels, method(), other, report.measured[task()]), said: counted(both, labels, task()) };
  };
});

function values(data, task, method, phase, seeds) {
  const found = data.scores.filter((score) => score.task === task && score.method === method && seeds.includes(score.seed))
    .map((score) => score[phase === "own" ? score.own : phase]).filter(Boolean);
  return data.names[task].map((_, at) => {
    const known = found.map((scores) => scores[at]).filter((value) => value !== null);
    return known.length ? mean(known) : null;
  });
}

function counted(both, labels, task) {
  const sign = report.higher[task] ? 1 : -1;
  // Means of seeds that are equal can differ in their last bits.
  const apart = ({ x, y }) => (Math.abs(y - x) <= 1e-12 * Math.max(Math.abs(x), Math.abs(y)) ? 0 : sign * (y - x));
  const count = (test) => both.filter((each) => test(apart(each))).length;
  return both.length ? `${labels[1]} is better than ${labels[0]} for ${count((d) => d > 0)} of ${both.length} clients, worse for `
    + `${count((d) => d < 0)}, and the same for ${count((d) => d === 0)}.` : "There is no such score here.";
}

function scattered(both, [before, after], method, other, measured) {
  const { colour, mark } = look(method);
  const axes = [before, after].map((name) => `${plain(measured)}: ${brief(name)}`);
  const all = both.flatMap((each) => [each.x, each.y]);
  const [low, high] = all.length ? [Math.min(...all), Math.max(...all)] : [0, 1];
  const room = (high - low) * 0.06 || 0.05;
  const range = [low - room, high + room];
  const square = { range, constrain: "domain" };
  const side = Math.min(document.getElementById("clients-figure").clientWidth, 540);
  return {
    traces: [
      { x: range, y: range, mode: "lines", hoverinfo: "skip", line: { color: css("--soft"), width: 1.2, dash: "dot" } },
      { x: both.map((each) => each.x), y: both.map((each) => each.y), mode: "markers", hovertemplate: "%{text}<extra></extra>",
        text: both.map((each) => `client ${plain(each.name)}<br>${plain(before)}: ${digits(each.x)}<br>${plain(after)}: ${digits(each.y)}`),
        marker: { symbol: mark, size: 10, color: faded(colour, 0.75), line: { color: css("--back"), width: 1 } } },
    ],
    layout: { height: side * 0.86 + 30, width: side, autosize: false, xaxis: scores(axes[0], square), yaxis: scores(axes[1], { ...square, scaleanchor: "x" }) },
  };
}

function dumbbells(both, [before, after], method, other, measured) {
  const sorted = [...both].sort((a, b) => a.y - b.y);
  const [mine, theirs] = [look(method), look(other)];
  const place = sorted.map((_, at) => at);
  const ends = (key, name, marker) => ({ x: sorted.map((each) => each[key]), y: place, mode: "markers", marker, name: plain(name),
    text: sorted.map((each) => `client ${plain(each.name)}<br>${plain(name)}: ${digits(each[key])}`), hovertemplate: "%{text}<extra></extra>" });
  const step = Math.ceil(sorted.length / 40);
  const shown = place.filter((at) => at % step === 0);
  return {
    traces: [
      { x: sorted.flatMap((each) => [each.x, each.y, null]), y: place.flatMap((at) => [at, at, null]), mode: "lines",
        hoverinfo: "skip", line: { color: css("--soft"), width: 1.5 } },
      ends("x", before, { symbol: "circle-open", size: 10, color: theirs.colour, line: { width: 2 } }),
      ends("y", after, { symbol: mine.mark, size: 10, color: mine.colour }),
    ],
    layout: { height: Math.max(260, 110 + 22 * Math.min(sorted.length, 60)), xaxis: scores(`${plain(measured)} (open: ${brief(before)};<br>full: ${brief(after)})`),
      yaxis: axis("client", { tickvals: shown, ticktext: shown.map((at) => brief(sorted[at].name, 14)), showgrid: false, zeroline: false }) },
  };
}
