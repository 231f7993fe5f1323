"""How fast the service is: a real server process under load, over the same images without a server."""
