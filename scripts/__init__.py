"""Tools of the operator; the shell scripts of the repository's root call them."""
