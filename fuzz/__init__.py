"""Long searches for input that Elman answers with anything but a result or a clear error."""
