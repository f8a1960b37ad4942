"""Feast: its objects, made from the declarations, and its online store class."""
