"""Model families and the packed policy built from them; importing this package loads neither torch nor transformers."""
