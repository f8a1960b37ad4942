"""The shop's own features: what a user viewed last, and what was sent back."""

from features.definitions import ALL, LastN, Sum

FEATURES = {
    "user": [
        LastN("viewed_item", "video_id", ("view",), 20),
        Sum("amount_cents", ("goods_returned",), (ALL,), name="returned_cents"),
    ],
    "video": [LastN("viewed_by", "user_id", ("view",), 20)],
}
