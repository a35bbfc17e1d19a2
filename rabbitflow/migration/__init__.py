"""Replacing queues whose arguments changed, without losing an event, over AMQP alone."""
