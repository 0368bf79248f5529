"""The other servers of the field, each as its own documentation advises."""
