// Panels that are no room: distances over steps, and the latent plane.
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
    const values = one.costs[one.cost] || one.costs.latent;
    const name = `as the planner sees it: ${data.units[one.cost] || data.units.latent}`;
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

function planePanel(grid, data, story) {
  const { box } = figure(grid, "Latents in the plane (PCA)");
  const c = data.colours;
  const plane = story.plane;
  const all = [...plane.left, ...plane.right, ...plane.path, plane.goal];
  const [xs, ys] = [0, 1].map((k) => all.map((p) => p[k]));
  const [x0, x1, y0, y1] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  const size = 280 / Math.max(x1 - x0, y1 - y0, 1e-9);
  const at = ([x, y]) => [
    150 + size * (x - (x0 + x1) / 2), 150 - size * (y - (y0 + y1) / 2),
  ].map((value) => Math.round(10 * value) / 10);
  const svg = make(box, "svg", { viewBox: "0 0 300 300", role: "img" });
  svg.setAttribute("aria-label", "latent trajectory in the plane of two principal components");
  const cloud = (list, fill) => make(svg, "path", {
    d: list.map((p) => `M${at(p)}h0`).join(""), stroke: fill, "stroke-width": 3.4,
    "stroke-linecap": "round", opacity: 0.3,
  });
  cloud(plane.left, c.left);
  cloud(plane.right, c.right);
  const line = (stroke, width) => make(svg, "polyline", {
    fill: "none", stroke, "stroke-width": width, "stroke-linejoin": "round",
  });
  const path = line(story.colour, 2.4);
  const plan = line(c.ink, 2.6);
  const macro = (plane.macro ? plane.macro[0] : []).map(() => make(svg, "circle", {
    r: 4.2, fill: c.subgoal, stroke: c.ink, "stroke-width": 0.8,
  }));
  const [gx, gy] = at(plane.goal);
  make(svg, "circle", { r: 6, cx: gx, cy: gy, fill: c.goal, stroke: c.paper });
  const dot = make(svg, "circle", { r: 6, fill: story.colour, stroke: c.paper });
  const [p1, p2] = plane.explained;
  key(box, [
    [{ dot: { fill: c.left } }, "left side"],
    [{ dot: { fill: c.right } }, "right side"],
    plane.plan && [{ stroke: c.ink }, "imagined plan"],
    plane.macro && [{ dot: { fill: c.subgoal, stroke: c.ink, "stroke-width": 0.8 } }, "level 2"],
    [null, `${p1} + ${p2} % of the variance`],
  ]);
  return (step) => {
    const call = Math.floor(step / story.replan);
    path.setAttribute("points", points(plane.path.slice(0, step + 1).map(at)));
    const [x, y] = at(plane.path[step]);
    set(dot, { cx: x, cy: y });
    if (plane.plan) {
      const k = Math.min(call, plane.plan.length - 1);
      const from = plane.path[Math.min(k * story.replan, step)];
      plan.setAttribute("points", points([from, ...plane.plan[k]].map(at)));
    }
    if (plane.macro) {
      const k = Math.min(call, plane.macro.length - 1);
      plane.macro[k].forEach((place, i) => {
        const [cx, cy] = at(place);
        set(macro[i], { cx, cy });
      });
    }
  };
}
