"""mla-ray over HTTP: encoders and index as Ray Serve deployments behind one FastAPI app, and the
client for it.
"""
