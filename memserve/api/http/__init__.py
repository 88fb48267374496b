"""The HTTP port: OpenAI's API over the same pipeline, limits and keys as gRPC."""
