"""Where a panel shows a player and says what is wrong."""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import Any

from hjepa_lib.figures import style
from hjepa_lib.widgets.player import Player, player
from hjepa_lib.widgets.story import Story


class Stage:
    """Where a panel shows a player and says what is wrong."""

    def __init__(self, *stories: Story) -> None:
        import ipywidgets

        self.output = ipywidgets.Output()
        self.message = ipywidgets.HTML()
        self.show(*stories)

    def show(self, *stories: Story) -> None:
        self._fill(player(*stories))

    def _fill(self, page: Player) -> None:
        # Set as a whole, not captured: replaced at once, without a flicker.
        data = {"text/html": str(page), "text/plain": "roll-out player"}
        self.output.outputs = ({"output_type": "display_data", "data": data, "metadata": {}},)

    def say(self, text: str, wrong: bool = False) -> None:
        colour, role = (style.GOAL, "alert") if wrong else (style.MUTED, "status")
        self.message.value = (
            f'<span role="{role}" class="hjepa-message" style="color:{colour}">'
            f"{html.escape(text)}</span>"
        )

    def attempt(self, work: Callable[[], Any]) -> bool:
        """Do the work, saying so; False and a sentence in the page when a value does not fit."""
        self.say("planning ...")
        try:
            work()
        except ValueError as error:  # every error of the library that a reader can cause is one
            self.say(str(error), wrong=True)
            return False
        return True
