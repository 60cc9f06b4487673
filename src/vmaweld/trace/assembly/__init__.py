"""From what a recorder observes to events in the order in which they took effect."""
