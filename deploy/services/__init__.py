"""The servers of a stack: how each is obtained, started, checked and stopped.

A service is plain data (`deploy.services.process.Service`): a command and a readiness check.
Does not know what restarts it (`deploy.supervisor`).
"""
