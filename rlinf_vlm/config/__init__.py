"""Configuration: schema (what may be written), load (how mistakes are told), resolve (what follows). No torch."""
