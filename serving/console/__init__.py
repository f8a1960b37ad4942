"""The console page, and the live messages that it receives."""
