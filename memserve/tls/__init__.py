"""Certificates: read from files, checked to fit, and read again when the files change; what is made of them
for ssl and gRPC; the trial authority of `memserve certs init`.
"""
