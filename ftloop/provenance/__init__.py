"""The ledger of a run: which rows were used in each step. Its verification and comparison."""
