"""Speed and memory, measured fairly: `python -m hjepa_lib.workbench.bench` (or `make bench`).

Modules: `level1` (updates), `planning` (calls, and how they grow), `world` (rendering, data),
`memory` (peaks of whole processes), `sweeps` (cells on workers), `command` (what is printed). How a
pair of times is taken stands in timing.py. Everything runs on the CPU, where this workbook has to
be quick. Planner and models have random weights: the time does not depend on them.
"""
