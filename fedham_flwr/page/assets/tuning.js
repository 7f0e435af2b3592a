// What was tried: for each setting its values, against the validation score of the trial.
const STATES = { complete: ["circle", "--accent"], pruned: ["circle-open", "--soft"], failed: ["x", "--bad"] };

draws("tuning-figure", report.tuning, (figure, controls, data) => {
  const labels = data.map((search) => [search.method, report.tasks.length > 1 && search.task].filter(Boolean).join(", "));
  const at = choice(controls, "method", labels);
  return () => {
    const search = data[at()];
    const place = figure.querySelector(".plot");
    const across = Math.min(search.dimensions.length, place.clientWidth < 560 ? 1 : place.clientWidth < 900 ? 2 : 3);
    const down = Math.ceil(search.dimensions.length / across);
    const layout = { height: 90 + 250 * down, grid: { rows: down, columns: across, pattern: "independent", xgap: 0.12, ygap: 0.34 } };
    const traces = search.dimensions.flatMap((dimension, number) => panel(search, dimension, number, layout, number % across === 0));
    return { traces, layout, said: summed(search) };
  };
});

function panel(search, dimension, number, layout, outer) {
  const tail = number ? number + 1 : "";
  const scored = search.trials.flatMap((trial) => (trial.value === null ? [] : [trial.value]));
  const [low, high] = scored.length ? [Math.min(...scored), Math.max(...scored)] : [0, 1];
  const room = (high - low) * 0.12 || 0.05;
  const kind = dimension.choice.length ? { type: "category", categoryorder: "array", categoryarray: dimension.choice }
    : { type: dimension.log ? "log" : "linear", ...(dimension.log ? steps(search.trials.map((trial) => trial.values[number])) : {}) };
  layout[`xaxis${tail}`] = axis(plain(dimension.key), { ...kind, tickangle: 0 });
  layout[`yaxis${tail}`] = scores(outer ? `validation ${plain(search.metric)}` : "", { range: [low - room, high + room] });
  const where = { xaxis: `x${tail}`, yaxis: `y${tail}`, mode: "markers", hovertemplate: "%{text}<extra></extra>" };
  const said = (trial) => `trial ${trial.number}: ${trial.state}<br>${plain(dimension.key)} = ${plain(trial.values[number])}<br>`
    + `${trial.value === null ? "no score" : digits(trial.value)}`;
  const x = (trial) => (dimension.choice.length ? String(trial.values[number]) : trial.values[number]);
  const chosen = search.trials.filter((trial) => trial.number === search.chosen);
  const ring = { size: 19, symbol: "circle-open", color: css("--ink"), line: { width: 2 } };
  return [
    ...Object.entries(STATES).map(([state, [symbol, colour]]) => {
      const trials = search.trials.filter((trial) => trial.state === state);
      return { ...where, x: trials.map(x), y: trials.map((trial) => trial.value ?? low - room * 0.6), text: trials.map(said),
        marker: { symbol, size: 9, color: css(colour), line: { width: 2, color: css(colour) } } };
    }),
    { ...where, x: chosen.map(x), y: chosen.map((trial) => trial.value), text: chosen.map(said), marker: ring },
  ];
}

// Ticks of a logarithmic axis: 1, 2 and 5 of each power of ten, or the powers alone over many of them.
function steps(values) {
  const [low, high] = [Math.min(...values), Math.max(...values)].map((value) => Math.log10(value));
  const tickvals = [];
  for (let power = Math.floor(low); power <= Math.ceil(high); power += 1) {
    for (const first of high - low > 2.2 ? [1] : [1, 2, 5]) tickvals.push(Number(`${first}e${power}`));
  }
  const room = (high - low) * 0.07 || 0.1;
  return { tickvals, ticktext: tickvals.map(String), range: [low - room, high + room] };
}

function summed(search) {
  const count = (state) => search.trials.filter((trial) => trial.state === state).length;
  const chosen = search.trials.find((trial) => trial.number === search.chosen);
  const values = chosen ? search.dimensions.map((each, at) => `${each.key} = ${chosen.values[at]}`).join(", ") : "";
  return `${search.trials.length} trials: ${count("complete")} complete (●), ${count("pruned")} pruned (○), ${count("failed")} failed (✕). `
    + (chosen ? `Chosen (ring): trial ${chosen.number}, ${values}.` : "None was chosen.");
}
