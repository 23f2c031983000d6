"""Watch a station over time: its frames, its scores and the answers of its engine."""
