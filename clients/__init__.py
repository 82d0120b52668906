"""Exports of every kind, read by every client in environments of their own: `tools/clients.py`."""
