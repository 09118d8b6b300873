"""Setups: what makes a run fast, or makes it fit into memory."""
