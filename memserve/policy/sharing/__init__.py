"""How tenants share the gateway and the engines."""
