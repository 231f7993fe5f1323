"""A real S3 interface for tests: moto's server."""

from __future__ import annotations

from contextlib import contextmanager

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nothing", "AWS_DEFAULT_REGION": "us-east-1"}


@contextmanager
def s3_server():
    """Start a server with the empty bucket ``photos``; yields the bucket and the environment that names the server."""
    import boto3  # these take a third of a second, which every collection of tests would wait for
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {**CREDENTIALS, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}
    session = boto3.Session(*(CREDENTIALS[name] for name in list(CREDENTIALS)[:2]), region_name="us-east-1")
    bucket = session.resource("s3", endpoint_url=environment["AWS_ENDPOINT_URL"]).Bucket("photos")
    bucket.create()
    yield bucket, environment
    server.stop()
