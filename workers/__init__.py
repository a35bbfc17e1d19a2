"""Eight example services: what happens after an order is placed, or a ride completed."""
