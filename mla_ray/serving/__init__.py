"""HTTP server and Python client.

The encoders and the index are Ray Serve deployments. One FastAPI app serves their results.
"""
