const MIB = 2 ** 20;

// Learning curves: for each method the mean of its seeds, with the band from the lowest to the highest.
draws("curves", report.curves, (figure, controls, data) => {
  const task = choice(controls, "task", report.tasks);
  const phase = choice(controls, "model", data.phases.map((name) => ({ own: "that the method stands for", before: "before local training",
    after: "after local training" }[name])));
  const split = choice(controls, "split", data.splits, data.splits.indexOf(data.first));
  const by = choice(controls, "by", ["rounds", "bytes", "seconds"]);
  const bands = boxes(controls, "", report.seeds.length > 1 ? ["band over seeds", "each seed"] : [], false, (at) => at === 1);
  const methods = boxes(controls, "methods", report.methods.map((method) => method.label), true);
  const seeds = boxes(controls, "seeds", report.seeds.map(String), false);
  return () => {
    const wanted = data.runs.filter((run) => run.task === task() && seeds().includes(run.seed))
      .flatMap((run) => scored(run, data.splits[split()], data.phases[phase()]));
    const key = ["round", "bytes", "seconds"][by()];
    const [band, single] = [0, 1].map((at) => bands().includes(at));
    const traces = methods().flatMap((method) => {
      const runs = wanted.filter((run) => run.method === method);
      return runs.length ? lines(method, joined(runs.map((run) => run.scores), key), key, band, single) : [];
    });
    const measured = report.measured[task()];
    const said = traces.length ? "" : `no ${data.splits[split()]} score over the rounds here`;
    const yaxis = scores(`${data.splits[split()]} ${plain(measured)}`);
    return { traces, said, layout: { xaxis: axis(unit(key), { rangemode: "tozero" }), yaxis, hovermode: "closest" } };
  };
});

// A run with its scores of a split and a phase; nothing where it has none.
function scored(run, split, phase) {
  const scores = run.values[`${split} ${phase === "own" ? run.own : phase}`];
  return scores ? [{ ...run, scores }] : [];
}

// The rounds that all runs have measured, with a value of each run; where they are on the axis is a mean over the runs.
function joined(all, key) {
  const at = all.map((each) => new Map(each.round.map((round, place) => [round, place])));
  const points = [];
  for (const round of all[0].round) {
    const places = at.map((map) => map.get(round));
    if (places.includes(undefined)) continue;
    const [values, where] = ["value", key].map((column) => all.map((each, i) => each[column][places[i]]));
    if (values.includes(null)) continue;
    const x = key === "round" ? round : mean(where) / (key === "bytes" ? MIB : 1);
    points.push({ round, x, values, mean: mean(values), low: Math.min(...values), high: Math.max(...values) });
  }
  return points;
}

function lines(method, points, key, band, single) {
  const { colour, dash, mark } = look(method);
  const name = plain(report.methods[method].label);
  const x = points.map((point) => point.x);
  const edge = (y, more) => ({ x, y, mode: "lines", line: { width: 0, color: colour }, hoverinfo: "skip", ...more });
  const many = points.length && points[0].values.length > 1;
  const traces = [];
  if (band && many) {
    traces.push(edge(points.map((point) => point.low)));
    traces.push(edge(points.map((point) => point.high), { fill: "tonexty", fillcolor: faded(colour, 0.14) }));
  }
  if (single && many) {
    points[0].values.forEach((_, seed) => traces.push(edge(points.map((point) => point.values[seed]), { line: { width: 1, color: faded(colour, 0.6) } })));
  }
  const text = points.map((point) => `${name}<br>round ${point.round}: ${digits(point.mean)}`
    + (many ? `<br>seeds ${digits(point.low)} to ${digits(point.high)}` : "")
    + (key === "round" ? "" : `<br>${digits2(point.x)} ${key === "bytes" ? "MiB" : "s"}`));
  traces.push({ x, y: points.map((point) => point.mean), mode: points.length > 30 ? "lines" : "lines+markers", text, name,
    hovertemplate: "%{text}<extra></extra>", line: { color: colour, dash, width: 2.2 }, marker: { symbol: mark, size: 7, color: colour } });
  return traces;
}

const digits2 = (value) => Number(value.toPrecision(3)).toLocaleString("en");

// The score of the closing evaluation over all that was sent, or the time that it took.
draws("costs-figure", report.curves, (figure, controls, data) => {
  const task = choice(controls, "task", report.tasks);
  const by = choice(controls, "by", ["bytes", "seconds"]);
  const methods = boxes(controls, "methods", report.methods.map((method) => method.label), true);
  return () => {
    const key = ["bytes", "seconds"][by()];
    const traces = methods().flatMap((method) => {
      const ends = data.runs.filter((run) => run.task === task() && run.method === method)
        .flatMap((run) => scored(run, data.split, "own"))
        .map(({ scores, seed }) => ({ x: scores[key].at(-1) / (key === "bytes" ? MIB : 1), y: scores.value.at(-1), seed: report.seeds[seed] }));
      if (!ends.length) return [];
      const { colour, mark } = look(method);
      const name = plain(report.methods[method].label);
      const means = { x: mean(ends.map((end) => end.x)), y: mean(ends.map((end) => end.y)) };
      const points = (all, text, marker) => ({ x: all.map((p) => p.x), y: all.map((p) => p.y), text, mode: "markers",
        hovertemplate: "%{text}<extra></extra>", marker: { symbol: mark, color: colour, ...marker } });
      const said = (p) => `${digits(p.y)}<br>${digits2(p.x)} ${key === "bytes" ? "MiB" : "s"}`;
      return [
        points(ends, ends.map((end) => `${name}, seed ${end.seed}<br>${said(end)}`), { size: 7, opacity: 0.6 }),
        points([means], [`${name}, mean of ${ends.length} seeds<br>${said(means)}`], { size: 13, line: { width: 1.5, color: css("--back") } }),
      ];
    });
    const wide = traces.flatMap((trace) => trace.x);
    const log = Math.min(...wide) > 0 && Math.max(...wide) / Math.min(...wide) > 8;
    const most = Math.max(...wide, 0) || 1;
    const range = log ? { type: "log", dtick: 1, minor: { ticks: "outside", dtick: "D1" } } : { range: [-0.03 * most, 1.05 * most], zeroline: true };
    const none = wide.some((x) => x === 0) && key === "bytes" ? "A method at 0 sends nothing." : "";
    return { traces, said: none, layout: { xaxis: axis(unit(key), range), yaxis: scores(`${data.split} ${plain(report.measured[task()])}`) } };
  };
});
