"""One run: its folder, stages, notebooks, report and storage."""
