"""The event log: what was announced is kept on the broker, and can be read and replayed."""
