"""The command `tidemill`: one module per group of commands, one line in `main` each.

Knows the command line and its output. The work is done by the packages.
"""
