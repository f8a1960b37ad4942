"""Layers that several systems share: transformer blocks with kept keys, tries, transitions.

Knows tensors. Does not know any one system. Importing this package imports no torch.
"""
