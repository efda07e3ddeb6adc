"""Looking inside one roll-out: what the planner saw, imagined, chose, and how it went.

`scene` says what is played, `story` plays it (or recalls a stored one) and gathers every number,
`player` shows a story in the browser without a kernel, `strips` shows the same content as a static
figure, `panels` lets a reader change the scene and the planner. Needs the extra `lab`.
"""
