"""What is shared of a run: its model card, and pushing it to the Hub. Delete it, and training works without."""
