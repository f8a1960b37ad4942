"""`tidemill doctor`: what the machine lacks, and what is wrong with a running stack.

Knows checks and remedies. Changes nothing, starts nothing.
"""
