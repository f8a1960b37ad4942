"""Layers that several models share: experts, transformer blocks, tries, decoding, transitions.

Knows tensors. Does not know any one model. Importing this package imports no torch.
"""
