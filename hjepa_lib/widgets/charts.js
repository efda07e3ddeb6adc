// The panel that is no room: distances over steps.
function axisTicks(most) {
  const raw = most / 4 || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const unit = [1, 2, 2.5, 5, 10].map((m) => m * power).find((m) => m >= raw);
  return Array.from({ length: Math.floor(most / unit + 1e-9) + 1 }, (_, i) => i * unit);
}

function chart(svg, c, top, height, steps, lines, name) {
  const [left, right] = [38, 288];
  const most = Math.max(...lines.flatMap((one) => one.values)) * 1.08 || 1;
  const x = (step) => left + ((right - left) * step) / Math.max(steps, 1);
  const y = (value) => top + height - (height * value) / most;
  make(svg, "text", { x: left, y: top - 7 }, name);
  for (const tick of axisTicks(most)) {
    make(svg, "line", { x1: left, x2: right, y1: y(tick), y2: y(tick), stroke: "#E6E9ED" });
    const text = String(Number(tick.toPrecision(3)));
    make(svg, "text", { x: left - 5, y: y(tick) + 4, "text-anchor": "end" }, text);
  }
  const cursor = make(svg, "line", { y1: top, y2: top + height, stroke: c.muted });
  const dots = lines.map(({ values, colour }) => {
    const list = values.map((value, step) => [x(step), y(value)]);
    make(svg, "polyline", {
      points: points(list), fill: "none", stroke: colour, "stroke-width": 1.8,
      "stroke-linejoin": "round",
    });
    return make(svg, "circle", { r: 4, fill: colour, stroke: c.paper });
  });
  return {
    x,
    draw: (step) => {
      set(cursor, { x1: x(step), x2: x(step) });
      lines.forEach(({ values }, i) => {
        const at = Math.min(step, values.length - 1);
        set(dots[i], { cx: x(at), cy: y(values[at]) });
      });
    },
  };
}

function wayPanel(grid, data, stories, steps) {
  const { box } = figure(grid, "Distance to the goal");
  const c = data.colours;
  const svg = make(box, "svg", { viewBox: "0 0 300 300", role: "img" });
  svg.setAttribute("aria-label", "distance to the goal over steps");
  const one = stories.length === 1 ? stories[0] : null;
  const lines = stories.map((story) => ({ values: story.way, colour: story.colour }));
  const charts = [chart(svg, c, 24, one ? 100 : 234, steps, lines, "shortest way left (px)")];
  if (one) {
    const values = one.costs[one.cost];
    const name = `as the planner sees it: ${data.units[one.cost]}`;
    charts.push(chart(svg, c, 158, 100, steps, [{ values, colour: c.ink }], name));
  }
  for (const tick of axisTicks(Math.max(steps, 4)).filter((t) => Number.isInteger(t))) {
    if (tick > steps) continue;
    make(svg, "text", { x: charts[0].x(tick), y: 274, "text-anchor": "middle" }, String(tick));
  }
  make(svg, "text", { x: 163, y: 292, "text-anchor": "middle" }, "step");
  const entries = stories.map((story) => [{ stroke: story.colour }, story.outcome]);
  key(box, one ? [[null, one.outcome]] : entries);
  return (step) => charts.forEach((one) => one.draw(step));
}
