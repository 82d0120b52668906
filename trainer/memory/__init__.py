"""How much memory a run needs, from configs alone, and what follows from it."""
