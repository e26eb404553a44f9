"""A detector of spoken words, exported as C and shown in a web page."""
