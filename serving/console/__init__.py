"""The console page, and what it is told live."""
