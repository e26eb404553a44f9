"""A character LSTM that has read Python's manual, and writes."""
