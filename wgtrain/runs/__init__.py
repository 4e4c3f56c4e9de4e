"""Runs in folders: opened, trained, interrupted, resumed, shown."""
