"""HTTP around the routes: middleware, error responses, uploads."""
