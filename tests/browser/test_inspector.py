"""Notebook 06 in JupyterLab, used as a person would: run all, scrub, play, move, replan, compare.

One page serves all tests in their order. What is asked of the clock is generous, because a busy
machine is no reason to fail.
"""

import re

import pytest

PLAYER = ".hjepa-player[data-ready]"


class Watch:
    """What the page and its kernel said meanwhile: errors, and messages sent."""

    def __init__(self, page):
        self.errors, self.sent = [], []
        page.on("pageerror", lambda error: self.errors.append(f"{error} {error.stack}"))
        page.on("console", self._console)
        page.on("websocket", lambda socket: socket.on("framesent", self._sent))

    def _sent(self, frame):  # Playwright marks its handlers, which a built-in method refuses
        self.sent.append(frame)

    def _console(self, message):
        where = f"{message.text} {message.location.get('url', '')}"
        if message.type == "error" and re.search("widget|hjepa|output|ipykernel", where, re.I):
            self.errors.append(where)


@pytest.fixture(scope="module")
def opened(lab, browser):
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.set_default_timeout(300_000)  # ms
    watch = Watch(page)
    page.goto(f"{lab}/lab/workspaces/test/tree/06_inspect_rollouts.ipynb?reset")
    page.locator(".jp-Notebook .jp-Cell").first.wait_for()
    page.get_by_text("| Idle").first.wait_for()
    # No news, thank you: the question would cover what is looked at.
    page.locator(".Toastify__toast button", has_text="No").click()
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.locator(".lm-Menu-item", has_text="Run All Cells").first.click()
    page.wait_for_function(
        """() => {
          const prompts = [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')];
          return prompts.length > 10 && prompts.every((one) => /\\[\\d+\\]/.test(one.textContent));
        }"""
    )
    page.wait_for_function(f"() => document.querySelectorAll('{PLAYER}').length === 4")
    return page, watch


@pytest.fixture
def page(opened):
    return opened[0]


@pytest.fixture
def watch(opened):
    return opened[1]


def part(page, number):
    """One of the four players: story, explorer, studio, pair."""
    found = page.locator(PLAYER).nth(number)
    found.scroll_into_view_if_needed()
    return found


def row_of(page, kind, label):
    row = page.locator(f".widget-{kind}", has=page.get_by_text(label, exact=True)).first
    row.scroll_into_view_if_needed()
    return row


def type_into(page, label, value):
    readout = row_of(page, "slider", label).locator(".widget-readout")
    readout.click()
    readout.press("Control+a")
    readout.type(str(value))
    readout.press("Enter")


def wait_for_player(page, number, text):
    page.locator(PLAYER).nth(number).get_by_text(text).first.wait_for()


def click_slider(page, one, share):
    """Click into a player's slider at a share of its width; returns the step that it shows then."""
    box = one.locator(".hp-slider").bounding_box()
    page.mouse.click(box["x"] + share * box["width"], box["y"] + box["height"] / 2)
    return step_of(one)


def step_of(one):
    return int(one.get_attribute("data-step"))


def test_every_cell_runs_and_nothing_fails(page):
    page.wait_for_function(
        """() => [...document.querySelectorAll(".jp-OutputArea-output")]
          .some((one) => one.textContent.startsWith("checks passed"))"""
    )
    for kind in ("stderr", "error"):
        assert page.locator(f"[data-mime-type='application/vnd.jupyter.{kind}']").count() == 0
    assert page.locator(".jp-OutputArea-output", has_text="Traceback").count() == 0
    assert page.locator(".hp-still").count() == 0  # every player's script ran
    kinds = page.evaluate(
        f"""() => [...document.querySelectorAll(
          ".jp-RenderedImage img, {PLAYER}")].map((one) => one.tagName === "IMG" ? "i" : "p")"""
    )  # in reading order, a static picture stands above every player
    assert re.fullmatch(r"i+pi+pi+pi+p", "".join(kinds))


def test_slider_changes_the_picture(page):
    """Arrow keys and clicks on the slider."""
    one = part(page, 0)
    before = one.screenshot()
    half = click_slider(page, one, 0.5)
    assert half > 10
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert step_of(one) == half + 3 and f"step {half + 3} of" in one.inner_text()
    assert one.screenshot() != before


def test_play_runs_in_the_browser_alone(page, watch):
    """About ten pictures a second, in order, without a single message to the kernel."""
    one = part(page, 0)
    assert click_slider(page, one, 0.005) == 0
    page.wait_for_timeout(1000)
    sent = len(watch.sent)
    one.evaluate(
        """(root) => {
          root.seen = [];
          const look = () => root.seen.push([performance.now(), Number(root.dataset.step)]);
          new MutationObserver(look).observe(root, { attributeFilter: ["data-step"] });
        }"""
    )
    one.get_by_role("button", name="Play").click()
    page.wait_for_function("(root) => root.seen.length > 8", arg=one.element_handle())
    one.locator(".hp-play").click()
    times, steps = zip(*one.evaluate("(root) => root.seen"), strict=True)
    rate = (steps[-1] - steps[0]) / (times[-1] - times[0]) * 1000
    assert list(steps) == sorted(steps)
    assert 8 < rate < 12
    assert len(watch.sent) - sent <= 1  # a heartbeat or a save at most; a round trip would be many
    page.wait_for_timeout(400)
    assert step_of(one) == steps[-1]  # paused


def test_landscape_toggle(page):
    panel = part(page, 0).locator("figure").nth(2)
    before = panel.locator("image").get_attribute("href")
    panel.get_by_role("button", name="distance", exact=True).click()
    assert panel.locator("image").get_attribute("href") != before
    assert "distance (steps)" in panel.inner_text()


def test_a_valid_scene_is_replanned(page):
    type_into(page, "start y", 40)
    type_into(page, "start x", 12)
    wait_for_player(page, 2, re.compile("^l1[+]l2, latent cost$"))
    type_into(page, "door y", 40)
    wait_for_player(page, 2, re.compile("the goal"))


def test_what_if_compares_side_by_side(page):
    row = row_of(page, "dropdown", "hierarchy.control")
    row.locator("select").select_option("shuffle")
    wait_for_player(page, 2, "l1+l2, latent cost, hierarchy.control shuffle")
    two = part(page, 2)
    assert two.locator("figure").count() == 3
    two.get_by_role("button", name="Play").click()
    page.wait_for_function("(root) => Number(root.dataset.step) > 3", arg=two.element_handle())
    two.get_by_role("button", name="Pause").click()


def test_no_errors_from_outputs_or_widgets(watch):
    """Last: what the page said during everything above."""
    assert watch.errors == []
