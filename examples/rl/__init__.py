"""Learn to balance a pole from what can be seen of it, with RecurrentPPO."""
