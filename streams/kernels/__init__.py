"""Compiled code of the event path, each kernel beside a plain reference."""
