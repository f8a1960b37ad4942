"""The demo: the whole loop in one sitting."""
