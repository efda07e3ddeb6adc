"""World models of grids of colours (seed 004)."""
