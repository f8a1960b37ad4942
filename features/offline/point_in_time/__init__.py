"""The point-in-time join: what the online reader would have returned at past moments.

`join` is the entry. It sorts events and labels once (`order`), reads counts (`counts`) and
last-n lists (`lists`) off the sorted order, and folds again (`replay`) where only that is exact.
"""
