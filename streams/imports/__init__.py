"""Files and tables of other systems, as events, items and users of this one.

Knows mappings from columns to fields. Does not know the command line (`deploy.cli.imports`).
"""
