"""Experiments on live traffic: arms, assignment, statistics that may be read at any time."""
