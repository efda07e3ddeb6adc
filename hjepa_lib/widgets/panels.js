// The panels of the player. Each function adds a panel to `grid` and returns what draws one step.
// Joined with charts.js and player.js into one script (player.py).
const SVG = "http://www.w3.org/2000/svg";
const FPS = 10;

const make = (parent, name, attributes = {}, text = "") => {
  const svg = parent instanceof SVGElement || name === "svg";
  const node = svg ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text) node.textContent = text;
  parent.appendChild(node);
  return node;
};
const set = (node, attributes) => {
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
};
const show = (node, on) => node.setAttribute("visibility", on ? "visible" : "hidden");
const points = (list) => list.map((p) => `${p[0]},${p[1]}`).join(" ");
const far = (a, b) => Math.hypot(a[0] - b[0], a[1] - b[1]);

// --- panels: each returns a function that draws one step ---------------------------------
function figure(grid, name) {
  const box = make(grid, "figure");
  const head = make(box, "div", { class: "hp-name" });
  make(head, "span", {}, name);
  return { box, head };
}

function key(box, entries) {
  const list = make(box, "figcaption", { class: "hp-key" });
  return entries.filter(Boolean).map(([look, text]) => {
    const item = make(list, "span");
    if (look) {
      const icon = make(item, "svg", { viewBox: "0 0 18 10", "aria-hidden": "true" });
      if (look.ramp) {
        look.ramp.forEach((fill, i) => {
          const width = 18 / look.ramp.length;
          make(icon, "rect", { x: i * width, y: 2, width: width + 0.3, height: 6, fill });
        });
      } else if (look.diamond) {
        make(icon, "path", { d: "M9 0.6l4.4 4.4l-4.4 4.4l-4.4 -4.4z", ...look.diamond });
      } else {
        make(icon, "line", { x1: 1, y1: 5, x2: 17, y2: 5, "stroke-width": 2.2, ...look });
      }
    }
    return make(item, "span", {}, text);
  });
}

function room(box, data, story, image) {
  const [width, height] = data.size;
  const svg = make(box, "svg", { viewBox: `-0.5 -0.5 ${width} ${height}`, role: "img" });
  svg.style.aspectRatio = `${width} / ${height}`;
  const floor = make(svg, "image", { href: image, x: -0.5, y: -0.5, width, height });
  const line = (colour, width, more = {}) =>
    make(svg, "polyline", {
      fill: "none", stroke: colour, "stroke-width": width, "stroke-linejoin": "round",
      "stroke-linecap": "round", ...more,
    });
  const disc = (fill, r, more = {}) => make(svg, "circle", { r, fill, ...more });
  const ends = () => {
    const { paper, ink, goal } = data.colours;
    const [s, g] = [story.start, story.goal];
    disc(paper, 1, { cx: s[0], cy: s[1], stroke: ink, "stroke-width": 0.35 });
    disc(goal, 1.25, { cx: g[0], cy: g[1], stroke: paper, "stroke-width": 0.3 });
  };
  return { svg, floor, line, disc, ends };
}

function framePanel(grid, data, story) {
  const { box } = figure(grid, "What the agent sees");
  const [width, height] = data.size;
  const canvas = make(box, "canvas", { width, height, role: "img" });
  canvas.style.aspectRatio = `${width} / ${height}`;
  canvas.setAttribute("aria-label", "the frame at this step");
  key(box, [[null, `${width} x ${height} pixels`]]);
  const pen = canvas.getContext("2d");
  const sheet = new Image();
  let now = 0;
  const draw = (step) => {
    now = step;
    if (!sheet.complete) return;
    const [x, y] = [step % story.columns, Math.floor(step / story.columns)];
    pen.drawImage(sheet, x * width, y * height, width, height, 0, 0, width, height);
  };
  sheet.onload = () => draw(now);
  sheet.src = story.sprite;
  return draw;
}

function planPanel(grid, data, story, name) {
  const { box } = figure(grid, name);
  const c = data.colours;
  const { svg, line, disc, ends } = room(box, data, story, story.floor);
  // The cheapest candidate is drawn last, so that it lies on top.
  const fan = [...story.shades].reverse()
    .map((shade) => line(shade, 0.32, { opacity: 0.75 })).reverse();
  const path = line(story.colour, 0.7);
  const macro = line(c.subgoal, 0.4, { "stroke-dasharray": "0.2 1" });
  const arrow = line(c.goal, 1.1);
  const tip = make(svg, "path", { fill: c.goal });
  const plan = line(c.ink, 0.6);
  ends();
  const diamonds = story.macro ? story.macro[0].map((_, i) =>
    make(svg, "path", {
      fill: c.subgoal, stroke: c.ink, "stroke-width": 0.22, opacity: i ? 0.85 : 1,
    })) : [];
  const dot = disc(story.colour, 1.25, { stroke: c.paper, "stroke-width": 0.35 });
  const texts = key(box, [
    [{ stroke: story.colour }, "path so far"],
    story.plan && [{ stroke: c.ink }, "chosen plan"],
    story.fan && [{ ramp: [c.best, c.worst] }, "candidates, low to high cost"],
    story.macro && [{ diamond: { fill: c.subgoal, stroke: c.ink, "stroke-width": 0.8 } }, " "],
    [{ stroke: c.goal }, `action (x${data.arrow})`],
  ]);
  const aim = story.macro && texts[texts.length - 2];
  return (step) => {
    const at = Math.min(step, story.path.length - 1);
    const call = Math.min(Math.floor(at / story.replan), story.plan ? story.plan.length - 1 : 0);
    const from = story.path[Math.min(call * story.replan, at)];
    const here = story.path[at];
    path.setAttribute("points", points(story.path.slice(0, at + 1)));
    if (story.plan) plan.setAttribute("points", points([from, ...story.plan[call]]));
    fan.forEach((one, i) => one.setAttribute("points", points([from, ...story.fan[call][i]])));
    if (story.macro) {
      const way = story.macro[call];
      macro.setAttribute("points", points([from, ...way]));
      way.forEach(([x, y], i) => {
        const r = i ? 1.05 : 1.5;
        diamonds[i].setAttribute("d", `M${x} ${y - r}l${r} ${r}l${-r} ${r}l${-r} ${-r}z`);
      });
      aim.textContent = story.near[call]
        ? "level 2 (level 1 aims at the goal)" : "level 2, first: sub-goal";
    }
    set(dot, { cx: here[0], cy: here[1] });
    const action = story.actions[at]?.length === 2 && story.actions[at];  // x and y
    [arrow, tip].forEach((node) => show(node, Boolean(action)));
    if (action) {
      const end = [here[0] + data.arrow * action[0], here[1] + data.arrow * action[1]];
      const angle = (Math.atan2(action[1], action[0]) * 180) / Math.PI;
      arrow.setAttribute("points", points([here, end]));
      set(tip, { d: "M1.8 0L-0.4 1.3L-0.4 -1.3z", transform: `translate(${end}) rotate(${angle})` });
    }
  };
}

function costPanel(grid, data, story) {
  const { box, head } = figure(grid, "Cost of a place");
  const c = data.colours;
  const names = Object.keys(story.landscapes);
  let name = story.cost;
  const { svg, floor, line, disc, ends } = room(box, data, story, story.landscapes[name]);
  const path = line(c.paper, 0.6, { opacity: 0.9 });
  ends();
  const dot = disc(story.colour, 1.25, { stroke: c.paper, "stroke-width": 0.4 });
  const [scale, value] = key(box, [[{ ramp: story.ramp }, " "], [null, " "]]);
  let now = 0;
  const draw = (step) => {
    now = step;
    const here = story.path[step];
    path.setAttribute("points", points(story.path.slice(0, step + 1)));
    set(dot, { cx: here[0], cy: here[1] });
    value.textContent = `here ${story.costs[name][step].toPrecision(3)}`;
  };
  const toggle = make(head, "div", { class: "hp-toggle", role: "group" });
  const buttons = names.map((one) => {
    const button = make(toggle, "button", { type: "button" }, one);
    button.addEventListener("click", () => choose(one));
    return button;
  });
  const choose = (one) => {
    name = one;
    floor.setAttribute("href", story.landscapes[one]);
    const [least, most] = story.ranges[one];
    scale.textContent = `${data.units[one]}: ${least} to ${most}`;
    buttons.forEach((b, i) => b.setAttribute("aria-pressed", String(names[i] === one)));
    draw(now);
  };
  svg.setAttribute("aria-label", "cost landscape");
  choose(name);
  return draw;
}

function aheadPanel(grid, data, story) {
  const { box } = figure(grid, "Open loop against truth");
  const c = data.colours;
  const { line, disc, ends } = room(box, data, story, story.floor);
  line(c.faint, 0.5).setAttribute("points", points(story.path));
  const truth = line(c.ink, 0.9);
  const guess = line(story.colour, 0.6);
  ends();
  const marks = Array.from({ length: 16 }, () => disc(story.colour, 0.55));
  const dot = disc(c.ink, 1.1, { stroke: c.paper, "stroke-width": 0.35 });
  const texts = key(box, [
    [{ stroke: c.ink }, "what happens"],
    [{ stroke: story.colour }, "what level 1 predicts from here"],
    [null, " "],
  ]);
  return (step) => {
    const here = story.path[step];
    const list = story.ahead[step] || [];
    const next = story.path.slice(step, step + list.length + 1);
    truth.setAttribute("points", points(next));
    guess.setAttribute("points", points([here, ...list]));
    marks.forEach((mark, i) => {
      show(mark, i < list.length);
      if (i < list.length) set(mark, { cx: list[i][0], cy: list[i][1] });
    });
    set(dot, { cx: here[0], cy: here[1] });
    const last = Math.min(list.length, next.length - 1);
    texts[2].textContent = last
      ? `after ${last} steps: ${far(list[last - 1], next[last]).toFixed(1)} px off`
      : "the end: nothing left to predict";
  };
}
