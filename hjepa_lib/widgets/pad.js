// A picture in which start and goal are moved by clicking or dragging: the nearer of the two follows.
// The picture and its colours come from the kernel; moving needs no round trip.
const SVG = "http://www.w3.org/2000/svg";

function make(parent, name, attributes) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  parent.appendChild(node);
  return node;
}

function render({ model, el }) {
  const look = model.get("look");
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", "map: click or drag to move start and goal");
  svg.setAttribute("class", "hjepa-pad");
  svg.style.cssText =
    "display:block;width:260px;cursor:crosshair;touch-action:none;background:#FFFFFF";
  el.appendChild(svg);
  const floor = make(svg, "image", { x: -0.5, y: -0.5 });
  const start = make(svg, "circle", {
    r: 1.5, fill: "#FFFFFF", stroke: look.start, "stroke-width": 0.5,
  });
  const goal = make(svg, "circle", { r: 1.8, fill: look.goal, stroke: "#FFFFFF" });
  goal.setAttribute("stroke-width", 0.4);

  const draw = () => {
    const [width, height] = look.size;
    svg.setAttribute("viewBox", `-0.5 -0.5 ${width} ${height}`);
    for (const [key, value] of Object.entries({ width, height, href: model.get("floor") }))
      floor.setAttribute(key, value);
    for (const [node, name] of [[start, "start"], [goal, "goal"]]) {
      node.setAttribute("cx", model.get(`${name}_x`));
      node.setAttribute("cy", model.get(`${name}_y`));
    }
  };
  const names = ["start_x", "start_y", "goal_x", "goal_y", "floor"];
  for (const name of names) model.on(`change:${name}`, draw);

  let held = null;
  const place = (event) => {
    const box = svg.getBoundingClientRect();
    const scale = look.size[0] / box.width;
    const at = [event.clientX - box.left, event.clientY - box.top];
    return at.map((value) => Math.round(2 * (value * scale - 0.5)) / 2); // half px, as sliders
  };
  const move = (event) => {
    const [x, y] = place(event);
    [x, y].forEach((value, i) => model.set(
      `${held}_${"xy"[i]}`, Math.min(Math.max(value, 0), look.size[i] - 1),
    ));
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
