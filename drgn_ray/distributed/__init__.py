"""Everything that runs on Ray: the only place that imports it."""
