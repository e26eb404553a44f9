"""Train on several processes, and go on after one of them is lost."""
