"""Functions of features: data, training, evaluation, export and release of every recommendation system.

Knows `features` and `streams`. Does not know requests or HTTP. Importing this
package, or `models.client` and `models.signature`, does not import torch.
"""
