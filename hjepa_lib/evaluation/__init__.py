"""From finished episodes to numbers with intervals: metrics, statistics, and the episode loop."""
