"""Compiled code of the feature path, each kernel beside a plain reference."""
