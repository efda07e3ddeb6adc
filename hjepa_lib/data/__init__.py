"""Offline data: trajectories (generated or published), training windows, normalisation.

`published.acquire` is the one entry point: it turns a `DataConfig` into `Trajectories`.
"""
