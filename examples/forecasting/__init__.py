"""Electricity demand of the day ahead, by a GRU and by the week before."""
