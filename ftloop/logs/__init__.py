"""Observers that show a run: log lines, progress bar, score table, summary, trackers."""
