"""The command `tidemill`: one module per group of commands, one line in `main` each.

Knows people at a terminal. What a command does lives in the packages.
"""
