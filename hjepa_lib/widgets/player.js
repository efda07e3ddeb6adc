// The clock of the player: one slider and one button for all panels, everything in the browser.
// All data are in the page: no kernel and no network is asked.
function start(root) {
  root.setAttribute("data-ready", "");
  const data = JSON.parse(root.querySelector("script[type='application/json']").textContent);
  root.querySelector(".hp-still").remove();
  const stories = data.stories;
  const steps = Math.max(...stories.map((story) => story.actions.length));
  const head = make(root, "div", { class: "hp-head" });
  if (stories.length === 1) {
    make(head, "span", { class: "hp-title" }, stories[0].title);
    make(head, "span", { class: "hp-outcome" }, stories[0].outcome);
  }
  const bar = make(root, "div", { class: "hp-bar" });
  const play = make(bar, "button", { type: "button", class: "hp-play" }, "Play");
  const slider = make(bar, "input", {
    type: "range", class: "hp-slider", min: 0, max: steps, value: 0, "aria-label": "step",
    "data-lm-suppress-shortcuts": "true", // JupyterLab leaves the arrow keys to the slider
  });
  const count = make(bar, "span", { class: "hp-step" });
  const look = stories.length === 1 ? "hp-panels" : "hp-panels hp-pair";
  const grid = make(root, "div", { class: look });
  const draws = stories.length === 1
    ? [
      framePanel(grid, data, stories[0]),
      planPanel(grid, data, stories[0], "Path, candidates, plan"),
      costPanel(grid, data, stories[0]),
      wayPanel(grid, data, stories, steps),
      aheadPanel(grid, data, stories[0]),
    ]
    : [
      ...stories.map((story) => planPanel(grid, data, story, story.title)),
      wayPanel(grid, data, stories, steps),
    ];
  let timer = 0;
  const go = (step) => {
    slider.value = step;
    root.setAttribute("data-step", step);
    count.textContent = `step ${step} of ${steps}`;
    draws.forEach((draw) => draw(step));
  };
  const stop = () => {
    cancelAnimationFrame(timer);
    timer = 0;
    play.textContent = "Play";
  };
  const run = () => {
    const first = Number(slider.value) >= steps ? 0 : Number(slider.value);
    const began = performance.now();
    play.textContent = "Pause";
    const tick = (now) => {
      if (!root.isConnected) return stop();
      const passed = Math.max(0, Math.floor(((now - began) * FPS) / 1000));
      const step = Math.min(steps, first + passed);
      if (step !== Number(slider.value)) go(step);
      if (step >= steps) return stop();
      timer = requestAnimationFrame(tick);
      return null;
    };
    timer = requestAnimationFrame(tick);
  };
  play.addEventListener("click", () => (timer ? stop() : run()));
  slider.addEventListener("input", () => {
    stop();
    go(Number(slider.value));
  });
  go(0);
}

document.querySelectorAll(".hjepa-player:not([data-ready])").forEach(start);
