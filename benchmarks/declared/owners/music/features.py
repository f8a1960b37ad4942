"""The service's own features: what a user rated last, and who rated a song."""

from features.definitions import LastN

FEATURES = {
    "user": [LastN("rated_item", "video_id", ("rating",), 20)],
    "video": [LastN("rated_by", "user_id", ("rating",), 20)],
}
