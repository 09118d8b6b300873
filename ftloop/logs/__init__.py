"""Observers that show a run: progress bar, score table, experiment trackers."""
