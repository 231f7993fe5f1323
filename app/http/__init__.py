"""The HTTP layer around the routes: connections, middleware, error responses, uploads."""
