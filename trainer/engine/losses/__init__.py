"""From the vectors of a step to its loss and their gradients: one file a task, and one table."""
