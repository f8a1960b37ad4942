"""Models: data, training, evaluation, export and release of every recommendation model.

Knows `features` and `streams`. Does not know requests or HTTP. Importing this package,
`models.client` or `models.signature` does not import torch.
"""
