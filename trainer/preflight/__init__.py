"""What is checked before a run starts, and the dry run that prints it."""
