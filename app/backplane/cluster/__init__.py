"""Types over the nodes of a Cluster; see docs/design/cluster.md."""
