"""The workers that this gateway knows, and the calls it makes to them."""
