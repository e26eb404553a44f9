"""Name the speaker of a recorded pair of vowels with a bidirectional GRU."""
