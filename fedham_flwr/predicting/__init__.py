"""What a trained model says of new rows: predictions, and how good they are where the truth is known."""
