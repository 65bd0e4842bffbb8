"""Full-catalogue metrics and the protocol they were measured under."""
