// A room whose start and goal are moved by clicking or dragging: the nearer of the two follows.
// Its colours and sizes come from the kernel once; drawing needs no round trip.
const SVG = "http://www.w3.org/2000/svg";

function make(parent, name, attributes) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  parent.appendChild(node);
  return node;
}

function render({ model, el }) {
  const look = model.get("look");
  const { low, high, wall, door } = look;
  const side = high - low;
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `${low - 1} ${low - 1} ${side + 2} ${side + 2}`);
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", "room: click or drag to move start and goal");
  svg.setAttribute("class", "hjepa-pad");
  svg.style.cssText =
    "display:block;width:260px;height:260px;cursor:crosshair;touch-action:none;background:#FFFFFF";
  el.appendChild(svg);
  make(svg, "rect", {
    x: low, y: low, width: side, height: side, fill: look.floor, stroke: look.ink,
    "stroke-width": 0.5,
  });
  const walls = [0, 1].map(() => make(svg, "rect", { width: 2 * wall, fill: look.ink }));
  const start = make(svg, "circle", {
    r: 1.5, fill: "#FFFFFF", stroke: look.start, "stroke-width": 0.5,
  });
  const goal = make(svg, "circle", { r: 1.8, fill: look.goal, stroke: "#FFFFFF" });
  goal.setAttribute("stroke-width", 0.4);

  const draw = () => {
    const [x, y] = [model.get("wall_x"), model.get("door_y")];
    walls.forEach((one, i) => {
      const [from, to] = i ? [y + door, high] : [low, y - door];
      one.setAttribute("x", x - wall);
      one.setAttribute("y", from);
      one.setAttribute("height", Math.max(to - from, 0));
    });
    for (const [node, name] of [[start, "start"], [goal, "goal"]]) {
      node.setAttribute("cx", model.get(`${name}_x`));
      node.setAttribute("cy", model.get(`${name}_y`));
    }
  };
  const names = ["start_x", "start_y", "goal_x", "goal_y", "wall_x", "door_y"];
  for (const name of names) model.on(`change:${name}`, draw);

  let held = null;
  const place = (event) => {
    const box = svg.getBoundingClientRect();
    const scale = (side + 2) / box.width;
    const at = [event.clientX - box.left, event.clientY - box.top];
    return at.map((value) => Math.round(2 * (low - 1 + value * scale)) / 2); // half px, as sliders
  };
  const move = (event) => {
    const [x, y] = place(event);
    model.set(`${held}_x`, Math.min(Math.max(x, 0), 64));
    model.set(`${held}_y`, Math.min(Math.max(y, 0), 64));
    model.save_changes();
  };
  svg.addEventListener("pointerdown", (event) => {
    const [x, y] = place(event);
    const away = (name) => Math.hypot(model.get(`${name}_x`) - x, model.get(`${name}_y`) - y);
    held = away("start") < away("goal") ? "start" : "goal";
    svg.setPointerCapture(event.pointerId);
    move(event);
  });
  svg.addEventListener("pointermove", (event) => held && move(event));
  svg.addEventListener("pointerup", () => { held = null; });
  draw();
  return () => { for (const name of names) model.off(`change:${name}`, draw); };
}

export default { render };
