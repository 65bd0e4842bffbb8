"""From a laptop to a cluster: what is shipped, what the cluster must be, the job, and manifests for each platform."""
