"""From what the field writes to the particle store: one module a format, one shared driver."""
