"""Text, image and other classification tasks, their collators, metrics and predictions."""
