"""Runs on disk: read their record, load their model, evaluate them, and predict with them."""
