"""What is worth watching or saving, for any reward module."""
