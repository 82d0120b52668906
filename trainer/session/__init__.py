"""A run put together from all rooms: opened, trained, evaluated, written."""
