"""A guitar amplifier, learnt by an LSTM and exported as C."""
