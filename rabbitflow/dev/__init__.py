"""``rabbitflow dev``: a broker, every consumer, and a look at what happens between them."""
