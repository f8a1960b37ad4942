"""The real servers of a stack: how each one is had, started, asked for health and stopped.

A part is plain data (`deploy.services.process.Part`): a command to run and a
question to ask. It does not know who keeps it running (`deploy.supervisor`).
"""
