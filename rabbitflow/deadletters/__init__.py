"""The dead letters of a consumer: looked at, grouped, replayed, mended, exported, on the broker."""
