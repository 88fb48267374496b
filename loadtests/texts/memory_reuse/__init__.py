"""How much of the prompts of recall traffic is found computed, by the order of the recalled passages."""
