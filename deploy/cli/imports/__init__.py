"""Commands that bring data of other systems here: `tidemill import` and `tidemill init`.

Knows the command line. The work is `streams.imports`'.
"""
