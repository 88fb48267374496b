"""The images of deploy/docker without Docker: built in clean Debian roots, and run as containers are.

`dockerfile.py` reads the Dockerfile, `building.py` does what it says, `container.py` runs what comes out.
"""
