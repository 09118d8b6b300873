"""The ledger of a run, and its verification."""
