"""Message bytes to columns and back: JSON, Protobuf, and the header that names the format."""
