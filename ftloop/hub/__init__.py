"""Share a run: its model card, and uploading it to the Hugging Face Hub."""
