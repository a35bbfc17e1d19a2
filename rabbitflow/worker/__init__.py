"""Running consumers: discovery, supervision, the runtime of one consumer, settlement."""
