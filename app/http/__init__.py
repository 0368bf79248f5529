"""HTTP routes and admission to the socket."""
