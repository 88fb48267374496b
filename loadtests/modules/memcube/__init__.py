"""A namespace with its modules, moved from tenant to tenant: round trip, damage, signatures, another base
model, and imports that are killed.
"""
