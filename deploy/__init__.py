"""How the parts start: the laptop stack, the command line, the simulated crowd.

May import every package; no package imports it.
"""
