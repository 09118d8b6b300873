"""Runs that exist on disk: read their record, load their model, evaluate them, predict with them."""
