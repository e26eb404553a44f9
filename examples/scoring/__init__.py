"""Many recordings scored by a model without a framework, on workers of which one is killed."""
