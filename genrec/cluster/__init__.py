"""The only place that speaks Ray Train, Ray Tune and Ray Jobs."""
